"""The pictures of an evaluation, each from its numbers to PNG bytes; style and colours are figures.py's."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from trainer import plane_figures
from trainer.evaluation_results import Evaluation, Width
from trainer.figures import COLOURS, CURVE, PAIR, SEGMENT, panel_rows, panels, png
from trainer.paths import Path, Walk
from trainer.progression import Progression
from trainer.scores import Score

TRIVIAL, RANDOM = "#E69F00", "#CC79A7"


def draw(found: Evaluation) -> dict[str, bytes]:
    """By name, those for which there are numbers."""
    pictures = {}
    if found.curve is not None and found.segment is not None:
        pictures["paths"] = _paths(found.curve, found.segment)
        if found.walk is not None:
            pictures["two-networks"] = _two_networks(found.curve, found.segment, found.walk)
        if found.trivial is not None:
            pictures["trivial-curve"] = _trivial(found.curve, found.segment, found.trivial)
        pictures["curve-ensembles"] = _curve_ensembles(found.scores)
    if found.surfaces:
        pictures["planes"] = plane_figures.planes(found.surfaces)
    if found.progressions:
        pictures["error-over-epochs"] = _error_over_epochs(found.progressions)
    pictures["calibration"] = _calibration(found.scores)
    if shown := [score for score in _main(found.scores) if score.members > 1]:
        pictures["disagreement"] = _disagreement(shown)
    return pictures


def _paths(curve: Path, segment: Path) -> bytes:
    """Figure 2, with the paper's regularised train loss."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, 2, sharex=True)
        for axis, field, title, scale in (
            (axes[0, 0], "train_error", "train error, %", 100),
            (axes[0, 1], "train_loss", "train loss with L2 term, nats", 1),
            (axes[1, 0], "test_error", "test error, %", 100),
            (axes[1, 1], "test_nll", "test loss, nats", 1),
        ):
            for path, colour, label in ((segment, SEGMENT, "straight segment"), (curve, CURVE, "curve")):
                axis.plot(path.t, _scaled(getattr(path, field), scale), color=colour, linewidth=1.8, label=label)
            axis.set_title(title)
            if scale == 1:
                _log_scale(axis)
        for path, colour in ((segment, SEGMENT), (curve, CURVE)):
            axes[1, 1].plot(path.t, path.test_nll_tempered, color=colour, linewidth=1.2, linestyle=":")
        axes[1, 1].plot([], [], color="#444444", linewidth=1.2, linestyle=":", label="after temperatures")
        for axis in axes[1]:
            axis.set_xlabel("t")
        figure.legend(*axes[1, 1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)

    return png(draw, (9.2, 6.6))


def _two_networks(curve: Path, segment: Path, walk: Walk) -> bytes:
    """Figure 4."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for path, colour, label, style in (
            (walk, RANDOM, "random segment", "--"),
            (segment, SEGMENT, "straight segment", "-"),
            (curve, CURVE, "curve", "-"),
        ):
            values = _scaled(path.pair_error, 100)
            axis.plot(path.walked, values, color=colour, linestyle=style, linewidth=1.8, label=label)
        axis.axhline(100 * curve.pair_error[0], color="#444444", linewidth=1, linestyle=":", label="φ(0) alone")
        axis.set_xlabel("distance walked from φ(0)")
        axis.set_title("test error of the ensemble {φ(0), φ(t)}, %")
        figure.legend(loc="outside right center", fontsize=9)

    return png(draw, (8.4, 4.0))


def _trivial(curve: Path, segment: Path, trivial: Path) -> bytes:
    """A.6: the error is as flat as ours, the loss is not."""

    def draw(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(1, 3))
        shown = (
            (segment, SEGMENT, "straight segment", "-"),
            (trivial, TRIVIAL, "trivial curve", "--"),
            (curve, CURVE, "curve", "-"),
        )
        for axis, field, title, scale in (
            (axes[0], "test_error", "test error, %", 100),
            (axes[1], "train_loss", "train loss with L2 term, nats", 1),
            (axes[2], "pair_error", "test error of {φ(0), φ(t)}, %", 100),
        ):
            for path, colour, label, style in shown:
                values = _scaled(getattr(path, field), scale)
                axis.plot(path.t, values, color=colour, linestyle=style, linewidth=1.8, label=label)
            axis.set_title(title)
            axis.set_xlabel("t")
        _log_scale(axes[1])
        flat = curve.pair_error + trivial.pair_error
        room = 100 * max(max(flat) - min(flat), 0.001)
        axes[2].set_ylim(100 * min(flat) - 0.2 * room, 100 * max(flat) + 0.6 * room)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)

    return png(draw, (10.4, 3.7))


def _curve_ensembles(scores: Sequence[Score]) -> bytes:
    """Section 4.3: points of the curve against the endpoints and independent networks, at equal rows."""

    def draw(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(1, 2))
        curve = [score for score in scores if score.predictor.startswith("curve, ")]
        sizes = [score.members for score in curve]
        for axis, field, title, scale in (
            (axes[0], "error", "test error, %", 100),
            (axes[1], "nll", "test NLL, nats", 1),
        ):
            for name, style in (("quality", "-"), ("untempered", ":")):
                values = [scale * getattr(getattr(score, name), field) for score in curve]
                label = f"points of the curve, {'with' if name == 'quality' else 'without'} temperatures"
                axis.plot(sizes, values, "o", linestyle=style, color=CURVE, markersize=4, linewidth=1.5, label=label)
            for score in scores:
                if score.predictor in ("single network", "endpoint pair", "independent"):
                    value = scale * getattr(score.quality, field)
                    label = f"independent, {score.members}" if score.predictor == "independent" else score.predictor
                    axis.axhline(value, color=COLOURS[score.predictor], linestyle="--", linewidth=1.2, label=label)
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(FixedLocator(sizes))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
            axis.set_xlabel("networks on the curve, equally spaced in t")
            axis.set_title(title)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)

    return png(draw, (9.2, 4.1))


def _error_over_epochs(progressions: Sequence[Progression]) -> bytes:
    """Figure 6."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for progression in progressions:
            colour = COLOURS[progression.method]
            axis.plot(
                progression.epochs, _scaled(progression.snapshot_error, 100), "o", linestyle=":", color=colour,
                markerfacecolor="white", markersize=5, linewidth=1.2, label=f"{progression.method}, one snapshot",
            )  # fmt: skip
            axis.plot(
                progression.epochs, _scaled(progression.ensemble_error, 100), "o-", color=colour,
                markersize=5, linewidth=1.8, label=f"{progression.method}, ensemble of all so far",
            )  # fmt: skip
        axis.set_xlim(left=0)
        axis.set_xlabel("training epochs from scratch")
        axis.set_title("test error, %")
        axis.legend(fontsize=9)

    return png(draw, (7.6, 4.2))


def _calibration(scores: Sequence[Score]) -> bytes:
    """Confidence less accuracy in bins of equally many rows."""
    shown = _main(scores)
    surest = 0.9999  # the last mark of the axis also holds what is surer

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(shown))
        least = min(b.confidence for score in shown for b in score.calibration.bins)
        for axis, score in zip(axes, shown, strict=True):
            bins = score.calibration.bins
            axis.axhline(0, color="#888888", linewidth=1)
            axis.plot(
                [min(b.confidence, surest) for b in bins], [100 * (b.confidence - b.accuracy) for b in bins], "o-",
                color=_colour(score), markersize=4, linewidth=1,
            )  # fmt: skip
            axis.set_title(f"{score.predictor}: {score.calibration.error:.3f}")
            axis.set_xscale("logit")
            axis.set_xlim(least - 0.1 * least, 0.99995)
            ticks = [tick for tick in (0.1, 0.5, 0.9, 0.99) if tick > least * 0.9]
            axis.xaxis.set_major_locator(FixedLocator([*ticks, surest]))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "≥.9999" if x >= surest else f"{x:g}"[1:]))
            axis.xaxis.set_minor_locator(NullLocator())
        figure.supxlabel("confidence; in the titles, the debiased calibration error", fontsize=10)
        figure.supylabel("confidence − accuracy, points", fontsize=10)

    return png(draw, (9.6, 0.4 + 2.5 * panel_rows(len(shown))))


def _disagreement(scores: Sequence[Score]) -> bytes:
    """On how many test rows each two members predict different classes."""

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(scores), share=False)
        greatest = max(100 * value for score in scores for row in score.disagreement for value in row)
        for axis, score in zip(axes, scores, strict=True):
            image = axis.imshow(100 * np.array(score.disagreement), cmap="viridis", vmin=0, vmax=max(greatest, 1e-9))
            axis.set_title(score.predictor)
            axis.set_xticks([0, score.members - 1])
            axis.set_yticks([0, score.members - 1])
            axis.grid(False)
        figure.colorbar(image, ax=axes, label="rows, %")

    return png(draw, (9.6, 0.3 + 2.2 * panel_rows(len(scores))))


def _main(scores: Sequence[Score]) -> list[Score]:
    """One of each method: of the curve's ensembles the largest, and no negative control."""
    curves = [score for score in scores if score.predictor.startswith("curve, ")]
    largest = max(curves, key=lambda score: score.members, default=None)
    return [score for score in scores if score.predictor in COLOURS or score is largest]


def _colour(score: Score) -> str:
    return COLOURS.get(score.predictor, CURVE)


def _log_scale(axis: Axes) -> None:
    """With plain numbers at 1, 2 and 5 of each decade."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _scaled(values: Sequence[float], scale: float) -> list[float]:
    return [scale * value for value in values]


def widths(found: Sequence[Width]) -> bytes:
    """Figure 3: worst points of the curve, worse endpoints, and the length ratio, by the size of the network."""

    def draw(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(1, 3))
        sizes = [width.parameters for width in found]
        for axis, summary, ends, title, scale in (
            (axes[0], "loss", "endpoint_loss", "train loss with L2 term, nats", 1),
            (axes[1], "test_error", "endpoint_test_error", "test error, %", 100),
        ):
            for part, style, label in (
                ("maximum", "o-", "curve, worst point"),
                ("integral", "s:", "curve, mean (Int)"),
            ):
                values = [scale * getattr(getattr(width, summary), part) for width in found]
                axis.plot(sizes, values, style, color=CURVE, markersize=5, linewidth=1.6, label=label)
            values = [scale * getattr(width, ends) for width in found]
            axis.plot(sizes, values, "D--", color=PAIR, markersize=5, linewidth=1.6, label="worse endpoint")
            axis.set_title(title)
        axes[2].plot(sizes, [width.length_ratio for width in found], "o-", color=CURVE, markersize=5, linewidth=1.6)
        axes[2].set_title("length, curve / segment")
        for axis in axes:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(FixedLocator(sizes))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _short(size)))
            axis.set_xlabel("parameters")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)

    return png(draw, (10.4, 3.8))


def _short(count: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
