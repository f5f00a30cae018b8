"""Contours of loss and error on planes through three networks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from trainer.figures import png
from trainer.planes import Surface

BANDS = 12


def planes(surfaces: Sequence[Surface]) -> bytes:
    """Figures 1, 7 and 8: above the train loss, below the test error; a column is a plane."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, len(surfaces), squeeze=False)
        for column, surface in enumerate(surfaces):
            for axis, values, label in (
                (axes[0, column], np.array(surface.train_loss), "train loss with L2 term, nats"),
                (axes[1, column], 100 * np.array(surface.test_error), "test error, %"),
            ):
                _contours(figure, axis, surface, values, label)
            axes[0, column].set_title(surface.name)
            axes[1, column].set_xlabel("distance in weight space")

    return png(draw, (5.4 * len(surfaces), 8.6))


def _contours(figure: Figure, axis: Axes, surface: Surface, values: np.ndarray, label: str) -> None:
    levels = _levels(values)
    filled = axis.contourf(surface.x, surface.y, values, levels, cmap="viridis_r", extend="max",
                           norm=BoundaryNorm(levels, 256, extend="max"))  # fmt: skip
    axis.contour(surface.x, surface.y, values, levels, colors="white", linewidths=0.4, alpha=0.6)
    bar = figure.colorbar(filled, cax=axis.inset_axes((1.03, 0.0, 0.045, 1.0)), label=label)  # as high as the plane
    bar.set_ticks(list(levels[::2]))
    bar.set_ticklabels([f"{level:.3g}" for level in levels[::2]])
    bar.minorticks_off()
    halo = [withStroke(linewidth=3, foreground="white")]
    ends = surface.marks[:2]
    axis.plot([m.x for m in ends], [m.y for m in ends], "--", color="black", linewidth=1.2, path_effects=halo)
    if surface.curve:
        axis.plot(*zip(*surface.curve, strict=True), color="black", linewidth=2, path_effects=halo)
    for mark in surface.marks:
        axis.plot(mark.x, mark.y, "o", color="black", markeredgecolor="white", markersize=7)
        above = mark not in ends  # the curve leaves the ends upwards
        axis.annotate(mark.label, (mark.x, mark.y), xytext=(0, 8 if above else -8), textcoords="offset points",
                      ha="center", va="bottom" if above else "top", fontsize=9, path_effects=halo)  # fmt: skip
    axis.set_aspect("equal")
    axis.grid(False)


def _levels(values: np.ndarray) -> np.ndarray:
    """Bounds of the bands: finer towards the valley, as in the paper; what lies above the last has one colour."""
    low, high = float(values.min()), float(np.quantile(values, 0.9))
    high = max(high, low + 1e-6)
    return low + (high - low) * np.concatenate([[0.0], np.geomspace(0.005, 1.0, BANDS)])
