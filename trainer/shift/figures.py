"""The pictures of a study of shift, each from its numbers to PNG bytes; style and colours are trainer/figures.py's."""

from collections.abc import Sequence
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trainer.evaluation_report import DETECTION_SCORES
from trainer.figures import COLOURS, panel_rows, panels, png
from trainer.shift.corruptions import SEVERITIES, Kind, corrupt
from trainer.shift.results import COVERAGES, METRICS, Measured, Shifted, UnderShift

SHOWN = ("error", "nll", "calibration", "coverage", "size", "aurc")


def draw(found: Shifted) -> dict[str, bytes]:
    """By name, those for which there are numbers."""
    pictures = {"risk-coverage": _risk_coverage(found)}
    if found.kinds:
        pictures["severity"] = severity(found.predictors, found.options.level)
        pictures["kinds"] = _kinds(found)
        pictures["detection"] = _detection(found)
    return pictures


def severity(predictors: Sequence[UnderShift], level: float) -> bytes:
    """What grows with severity, mean over kinds; a line a predictor."""

    def draw(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(2, 3, sharex=True).flat)
        for axis, name in zip(axes, SHOWN, strict=True):
            metric = METRICS[name]
            for entry in predictors:
                _line(axis, entry, entry.by_severity(metric.of))
            axis.set_title(metric.title)
        axes[SHOWN.index("coverage")].axhline(100 * level, color="#888888", linewidth=1, linestyle="--")
        size = axes[SHOWN.index("size")]
        size.set_ylim(0.98, max(1.1, size.get_ylim()[1]))  # no mountains of hundredths of a class
        for axis in axes[3:]:
            axis.set_xlabel("severity; 0: clean")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)

    return png(draw, (10.4, 6.6))


def _kinds(found: Shifted) -> bytes:
    """NLL by kind."""

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(found.kinds), share=False)
        for axis, kind in zip(axes, found.kinds, strict=True):
            for entry in found.predictors:
                _line(axis, entry, [m.quality.nll for m in (entry.clean, *entry.corrupted[kind])])
            axis.set_title(kind)
            axis.set_ylim(bottom=0)
        handles = axes[0].get_legend_handles_labels()
        title = "NLL, nats, by severity; 0: clean"
        figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=9, title=title, title_fontsize=10)

    return png(draw, (10.4, 0.8 + 2.2 * panel_rows(len(found.kinds))))


def _detection(found: Shifted) -> bytes:
    """How well corrupted rows are told from clean ones, mean over kinds."""

    def draw(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(1, len(DETECTION_SCORES), sharey=True).flat)
        for axis, score in zip(axes, DETECTION_SCORES, strict=True):
            for entry in (entry for entry in found.predictors if score != "mutual information" or entry.members > 1):
                _line(axis, entry, entry.by_severity(partial(_auroc, score)))
            axis.set_title(f"AUROC by {score}")
            axis.set_xlabel("severity; 0: clean")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)

    return png(draw, (10.4, 3.9))


def _auroc(score: str, measured: Measured) -> float:
    """Clean rows are told from themselves as by a coin."""
    return measured.detections[score].auroc if measured.detections else 0.5


def _risk_coverage(found: Shifted) -> bytes:
    """Error of the surest rows, by their share."""
    groups = {"clean": "clean rows", "corrupted": "all corrupted rows"}
    shown = [name for name in groups if name in found.predictors[0].risk]

    def draw(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(1, len(shown), squeeze=False).flat)
        for axis, name in zip(axes, shown, strict=True):
            for entry in found.predictors:
                axis.plot(
                    [100 * share for share in COVERAGES], [100 * risk for risk in entry.risk[name]],
                    color=COLOURS[entry.predictor], linewidth=1.5, label=entry.predictor,
                )  # fmt: skip
            axis.set_title(f"{groups[name]}: error of the surest, %")
            axis.set_xlabel("share of rows that are answered, %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)

    return png(draw, (5.0 * len(shown), 4.0))


def corruptions(inputs: Tensor, kinds: Sequence[Kind], seed: int) -> bytes:
    """A row under every kind, clean and at each severity. inputs: uint8 [N, C, H, W]."""
    one = inputs[len(inputs) // 2, None]
    height, width = one.shape[-2:]
    gap = max(1, width // 8)
    tiles = one.new_full((len(kinds), SEVERITIES + 1, one.shape[1], height + gap, width + gap), 255)
    for line, kind in zip(tiles, kinds, strict=True):
        line[:, :, :height, :width] = torch.cat(
            [one, *(corrupt(one, kind, severity, seed) for severity in range(1, SEVERITIES + 1))]
        )
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [kinds · height, severities · width, C]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.imshow(sheet.numpy(), cmap="gray", vmin=0, vmax=255)
        axis.set_xticks(
            [i * (width + gap) + (width - 1) / 2 for i in range(SEVERITIES + 1)], ["clean", *range(1, SEVERITIES + 1)]
        )
        axis.set_yticks(
            [i * (height + gap) + (height - 1) / 2 for i in range(len(kinds))], [kind.name for kind in kinds]
        )
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.grid(False)
        axis.spines[:].set_visible(False)

    return png(draw, (7.0, 0.3 + 0.8 * len(kinds)))


def _line(axis: Axes, entry: UnderShift, values: Sequence[float]) -> None:
    colour = COLOURS[entry.predictor]
    axis.plot(range(len(values)), values, "o-", color=colour, markersize=3.5, linewidth=1.5, label=entry.predictor)
