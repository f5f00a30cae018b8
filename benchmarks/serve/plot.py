"""A picture of a comparison: images a second and CPU-efficiency of every server, a mark a load."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from benchmarks.serve import table
from benchmarks.serve.contenders import Contender, Kind
from benchmarks.serve.loads import CLOSED
from benchmarks.serve.rounds import Round

MARKS = dict(zip(CLOSED, "o^sD", strict=True))
COLOURS = {Kind.OURS: "#b2182b", Kind.TUNED: "#2166ac", Kind.NATURAL: "#92c5de"}


def draw(path: Path, contenders: Sequence[Contender], rounds: Sequence[Round]) -> None:
    first = next(iter(CLOSED))
    shown = [each for each in contenders if table.over(rounds, table.images_per_s(each.name, first))]
    shown.reverse()  # the first on top
    figure = Figure(figsize=(10, 1.2 + 0.34 * len(shown)), layout="constrained")
    rate, share = figure.subplots(1, 2, sharey=True)
    panels = ((rate, table.images_per_s, 1, "images/s"), (share, table.efficiency, 100, "CPU-efficiency, %"))
    for axes, value, scale, label in panels:
        for y, contender in enumerate(shown):
            for step, mark in MARKS.items():
                if found := [scale * each for each in table.over(rounds, value(contender.name, step))]:
                    axes.plot([min(found), max(found)], [y, y], color=COLOURS[contender.kind], linewidth=1)
                    axes.plot(median(found), y, mark, color=COLOURS[contender.kind], markersize=5)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    share.axvline(100, color="0.4", linewidth=0.8)  # the bare loop
    rate.set_yticks(range(len(shown)), [each.name for each in shown])
    for step, mark in MARKS.items():
        load = CLOSED[step]
        rate.plot(
            [], [], mark, color="0.4", label=f"{load.parallel} × {load.rows} {'rows' if load.rows > 1 else 'row'}"
        )
    figure.legend(loc="outside lower center", ncols=len(MARKS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
