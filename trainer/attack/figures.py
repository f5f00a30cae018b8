"""The pictures of an attack, each from its numbers to PNG bytes; style and colours are trainer/figures.py's."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from trainer.attack.results import CLEAN, Along, Found, Radius
from trainer.attack.scores import Share
from trainer.figures import CURVE, FGE, PAIR, SEGMENT, SINGLE, png

BESIDE = ("#E69F00", "#CC79A7", "#56B4E9")  # of ensembles attacked beside
SHOWN = 8  # examples


def draw(found: Found) -> dict[str, bytes]:
    """By name, those for which there are numbers."""
    pictures = {"accuracy": _accuracy(found), "radii": _radii(found.radii)}
    if found.along is not None:
        pictures["along"] = _along(found.along)
    return pictures


def examples(rows: Tensor, moved: Tensor) -> bytes:
    """Clean rows [N, C, H, W] of pixels over what an attack made of them."""
    chosen = torch.arange(SHOWN) * len(rows) // SHOWN if len(rows) > SHOWN else torch.arange(len(rows))

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, len(chosen), squeeze=False)
        for line, images, label in ((0, rows, "clean"), (1, moved, "attacked")):
            for axis, index in zip(axes[line], chosen.tolist(), strict=True):
                image = images[index].float().permute(1, 2, 0).numpy() / 255
                grey = image.shape[2] not in (3, 4)
                axis.imshow(image[:, :, 0] if grey else image[:, :, :3], cmap="gray", vmin=0, vmax=1)
                axis.set_xticks([])
                axis.set_yticks([])
                axis.grid(False)
            axes[line][0].set_ylabel(label)

    return png(draw, (9.2, 2.6))


def _accuracy(found: Found) -> bytes:
    """A group of bars an attack; whiskers are the intervals."""
    attacks = list(dict.fromkeys(line.attack for line in found.lines))[::-1]
    series: list[tuple[str, str, str, str]] = []  # predictor, field, label, colour
    beside = iter(BESIDE)
    for index, predictor in enumerate(found.predictors):
        if predictor.members == 1:
            series.append((predictor.name, "expected", predictor.name, SINGLE))
        elif index == 0:
            series += [
                (predictor.name, "expected", f"{predictor.name}, random member", CURVE),
                (predictor.name, "mean", f"{predictor.name}, mean", FGE),
            ]
        else:
            colour = next(beside, SEGMENT)
            series.append((predictor.name, "expected", f"{predictor.name}, random member", colour))
            series.append((predictor.name, "mean", f"{predictor.name}, mean", PAIR))
    height = 0.8 / len(series)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for offset, (predictor, field, label, colour) in enumerate(series):
            for place, attack in enumerate(attacks):
                line = found.line(attack, predictor)
                share: Share | None = getattr(line.accuracy, field) if line else None
                if share is None:
                    continue
                axis.barh(
                    place + 0.4 - (offset + 0.5) * height, 100 * share.value, height * 0.9, color=colour,
                    label=label if attack == CLEAN else None,
                    xerr=[[100 * (share.value - share.low)], [100 * (share.high - share.value)]],
                    error_kw={"linewidth": 0.8, "ecolor": "#555555"},
                )  # fmt: skip
        axis.set_yticks(range(len(attacks)), attacks)
        axis.set_xlim(0, 100)
        axis.set_title("accuracy, %")
        axis.grid(visible=False, axis="y")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)

    return png(draw, (9.2, 1.2 + (0.11 * len(series) + 0.1) * len(attacks)))


def _radii(radii: list[Radius]) -> bytes:
    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        places = range(len(radii))  # each radius twice the last
        for field, label, colour in (
            ("expected", "random member", CURVE), ("mean", "mean", FGE), ("all_members", "all members", SEGMENT),
        ):  # fmt: skip
            values = [100 * getattr(radius.accuracy, field).value for radius in radii]
            axis.plot(places, values, "o-", color=colour, label=label, linewidth=1.6, markersize=4)
        axis.set_xticks(places, [f"{radius.epsilon:g}" for radius in radii])
        axis.set_xlabel("radius, in units of the raw rows")
        axis.set_title("accuracy under a short PGD, %")
        axis.set_ylim(-2, 102)
        axis.legend(loc="upper right", fontsize=9)

    return png(draw, (7.4, 3.4))


def _along(along: Along) -> bytes:
    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.plot(along.s, along.attack, "o-", color=CURVE, label="towards the attacked row")
        axis.plot(along.s, along.random, "o--", color=SEGMENT, label="as far in a random direction")
        axis.set_xlabel("share of the way")
        axis.set_title("expected loss, mean over rows, nats")
        axis.legend(loc="upper left", fontsize=9)

    return png(draw, (7.4, 3.0))
