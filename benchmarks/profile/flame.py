"""A flame graph: a bar a function, as wide as the time in it and in what it calls, on top of the bar that called it."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.profile.stacks import OTHER, STAGES, Stacks, stage

COLOURS = dict(
    zip(
        [*STAGES, OTHER],
        ("#bdbdbd", "#e6550d", "#756bb1", "#fdae6b", "#31a354", "#74c476", "#3182bd", "#9ecae1", "#fdd0a2", "#efefef"),
        strict=True,
    )
)
LEAST_SHARE = 0.002  # a narrower bar could not be seen


# Depth, start and width in samples, function, stage.
Bar = tuple[int, int, int, str, str]


def bars(stacks: Stacks) -> list[Bar]:
    """Callees of one function stand side by side."""
    found: list[Bar] = []

    def add(depth: int, start: int, stacks: list[tuple[tuple[str, ...], int]], path: tuple[str, ...]) -> None:
        children: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for stack, count in stacks:
            if len(stack) > depth:
                children.setdefault(stack[depth], []).append((stack, count))
        for name in sorted(children):
            width = sum(count for _, count in children[name])
            found.append((depth, start, width, name, stage((*path, name))))
            add(depth + 1, start, children[name], (*path, name))
            start += width

    add(0, 0, sorted(stacks.items()), ())
    return found


def draw(path: Path, stacks: Stacks, microseconds: float, title: str) -> None:
    """All above, below what is left without the networks. microseconds: of a request, that a sample stands for."""
    without = Stacks({stack: count for stack, count in stacks.items() if stage(stack) != "networks"})
    panels = [_visible(each) for each in (stacks, without)]
    depths = [max((bar[0] for bar in shown), default=0) + 1 for shown in panels]
    figure = Figure(figsize=(16, 2 + 0.2 * sum(depths)), layout="constrained")
    titles = (title, "the same without the networks")
    for axes, shown, each, text in zip(
        figure.subplots(2, height_ratios=depths), panels, (stacks, without), titles, strict=True
    ):
        _panel(axes, shown, each.total(), microseconds)
        axes.set_title(text, fontsize=10)
    for name, colour in COLOURS.items():
        axes.bar(0, 0, color=colour, label=name)
    axes.set_xlabel("µs a request")
    figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _visible(stacks: Stacks) -> list[Bar]:
    least = LEAST_SHARE * stacks.total()
    return [bar for bar in bars(stacks) if bar[2] >= least]


def _panel(axes: Axes, shown: list[Bar], total: int, microseconds: float) -> None:
    for level, start, width, name, of in shown:
        left = start * microseconds
        axes.barh(level, width * microseconds, left=left, height=0.95, color=COLOURS[of], edgecolor="white")
        letters = int(190 * width / total)
        if letters > 3:
            axes.text(left, level, f" {name.partition(' (')[0][:letters]}", va="center", fontsize=6, clip_on=True)
    axes.set_xlim(0, total * microseconds)
    axes.set_yticks([])
