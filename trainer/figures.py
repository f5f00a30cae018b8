"""The report's pictures, each from numbers in Results to PNG bytes."""

from collections.abc import Callable
from io import BytesIO
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.evaluate import Quality
from trainer.results import FgeTrace, Profile, Results

# Okabe and Ito's palette: told apart by everyone.
CURVE, SEGMENT, FGE, SINGLE, PAIR = "#0072B2", "#999999", "#D55E00", "#000000", "#009E73"
COLOURS = {
    "single network": SINGLE,
    "endpoint pair": PAIR,
    "independent": "#E69F00",
    "SSE": "#CC79A7",
    "FGE": FGE,
    "SWA": "#B8A800",
    "SWAG": "#56B4E9",
    "curve": CURVE,
}
STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def fge_walk(results: Results, trace: FgeTrace) -> bytes:
    """Learning rate, test error and distance from the start by iteration, snapshots marked (paper, Figure 5)."""

    def draw(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(3, 1, sharex=True))
        at_snapshot = [i % trace.cycle_iterations == trace.cycle_iterations // 2 for i in trace.iteration]
        panels = (
            (trace.learning_rate, "learning rate"),
            ([100 * error for error in trace.test_error], "test error, %"),
            (trace.distance, "distance from start"),
        )
        for axis, (values, label) in zip(axes, panels, strict=True):
            axis.plot(trace.iteration, values, color=FGE, linewidth=1.3)
            marked = [(i, value) for i, value, mark in zip(trace.iteration, values, at_snapshot, strict=True) if mark]
            axis.plot(*zip(*marked, strict=True), "o", color=FGE, markerfacecolor="white", markersize=6)
            axis.set_ylabel(label)
        axes[0].set_title("A circle is a snapshot: taken where the learning rate is least")
        error = 100 * _quality(results, "FGE").error
        axes[1].axhline(error, color=FGE, linestyle="--", linewidth=1, label="the ensemble")
        axes[1].legend(fontsize=9)
        axes[2].set_xlabel("iteration")

    return png(draw, (8.0, 6.2))


def path(results: Results, curve: Profile, segment: Profile) -> bytes:
    """Train and test error and loss along the curve and along the straight segment (paper, Figure 2)."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, 2, sharex=True)
        for axis, field, title, scale in (
            (axes[0, 0], "train_error", "train error, %", 100),
            (axes[0, 1], "train_nll", "train loss, nats", 1),
            (axes[1, 0], "test_error", "test error, %", 100),
            (axes[1, 1], "test_nll", "test loss, nats", 1),
        ):
            for profile, colour, label in ((segment, SEGMENT, "straight segment"), (curve, CURVE, "curve")):
                values = [scale * value for value in getattr(profile, field)]
                axis.plot(profile.t, values, color=colour, linewidth=1.8, label=label)
            axis.set_title(title)
            # The loss falls to thousandths on the curve and rises to several nats on the segment.
            if field.endswith("nll"):
                axis.set_yscale("log")
        loss = axes[1, 1]
        loss.plot(curve.t, curve.test_nll_tempered, color=CURVE, linewidth=1.2, linestyle=":")
        loss.plot(segment.t, segment.test_nll_tempered, color=SEGMENT, linewidth=1.2, linestyle=":")
        loss.plot([], [], color="#444444", linewidth=1.2, linestyle=":", label="after temperatures")
        quality = _quality(results, "curve")
        axes[1, 0].axhline(100 * quality.error, color=CURVE, linewidth=1, linestyle="--", label="curve ensemble")
        loss.axhline(quality.nll, color=CURVE, linewidth=1, linestyle="--", label="curve ensemble")
        for axis in axes[1]:
            axis.set_xlabel("t")
        axes[1, 0].legend(fontsize=9)
        loss.legend(fontsize=9)

    return png(draw, (9.2, 6.4))


def path_zoomed(results: Results, curve: Profile) -> bytes:
    """Test error and loss on the curve alone, where the segment does not dwarf them; members and ensemble."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        quality = _quality(results, "curve")
        left.plot(curve.t, [100 * error for error in curve.test_error], color=CURVE, linewidth=1.8, label="one network")
        left.axhline(100 * quality.error, color=CURVE, linestyle="--", linewidth=1, label="curve ensemble")
        left.set_title("test error on the curve, %")
        right.plot(curve.t, curve.test_nll, color=CURVE, linewidth=1.8, label="one network")
        right.plot(
            curve.t, curve.test_nll_tempered, color=CURVE, linewidth=1.2, linestyle=":",
            label="one network, after temperature",
        )  # fmt: skip
        right.axhline(quality.nll, color=CURVE, linestyle="--", linewidth=1, label="curve ensemble")
        right.set_title("test loss on the curve, nats")
        for axis in (left, right):
            axis.set_xlabel("t")
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=9)

    return png(draw, (9.2, 3.4))


def reliability(results: Results) -> bytes:
    """Accuracy against confidence; a point's area is its share of the test rows."""

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(results.reliability))
        for axis, (name, bins) in zip(axes, results.reliability.items(), strict=True):
            axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
            axis.plot(
                [b.confidence for b in bins], [b.accuracy for b in bins], color=COLOURS[name], linewidth=1, alpha=0.6
            )
            axis.scatter(
                [b.confidence for b in bins], [b.accuracy for b in bins],
                s=[20 + 400 * b.share for b in bins], color=COLOURS[name], alpha=0.7, linewidth=0,
            )  # fmt: skip
            axis.set_title(f"{name}: ECE {_quality(results, name).ece:.3f}")
            axis.set_aspect("equal")
            axis.set_xlim(0, 1.05)
            axis.set_ylim(0, 1.05)
            axis.set_xticks([0, 0.5, 1])
        figure.supxlabel("confidence", fontsize=10)
        figure.supylabel("accuracy", fontsize=10)

    return png(draw, (9.6, 0.4 + 2.5 * panel_rows(len(results.reliability))))


def temperatures(results: Results) -> bytes:
    """Each member's temperature, and the pooled one, by ensemble."""

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(results.temperatures))
        for axis, (name, values) in zip(axes, results.temperatures.items(), strict=True):
            colour = COLOURS[name]
            axis.plot(range(len(values)), values, "o-", color=colour, markersize=4, linewidth=1, label="members")
            axis.axhline(results.pooled_temperatures[name], color=colour, linestyle="--", linewidth=1, label="pooled")
            axis.set_title(name)
            axis.set_xlim(-0.5, len(values) - 0.5)  # wide enough for a whole number, of a single member too
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axis.legend(fontsize=9)

        figure.supxlabel("member", fontsize=10)
        figure.supylabel("temperature", fontsize=10)

    return png(draw, (9.6, 0.4 + 2.5 * panel_rows(len(results.temperatures))))


PANELS = 4  # in a row


def panel_rows(count: int) -> int:
    return -(-count // PANELS)


def panels(figure: Figure, count: int, share: bool = True) -> list[Axes]:
    """So many panels, at most PANELS in a row."""
    columns = min(count, PANELS)
    grid = figure.subplots(panel_rows(count), columns, sharey=share, squeeze=False)
    axes: list[Axes] = list(grid.flat)
    for axis in axes[count:]:
        axis.remove()
    return axes[:count]


def _quality(results: Results, predictor: str) -> Quality:
    return next(row.quality for row in results.rows if row.predictor == predictor)


def png(draw: Callable[[Figure], None], size: tuple[float, float]) -> bytes:
    with plt.rc_context(cast(Any, STYLE)):
        figure = plt.figure(figsize=size)
        draw(figure)
        buffer = BytesIO()
        # No software field: equal numbers give an equal file.
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
        plt.close(figure)
    return buffer.getvalue()
