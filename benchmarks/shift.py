"""How do ensembles fare on rows unlike those they learnt from? Against one network, and each other at equal budgets.

Independent networks, FGE, SWAG and a curve train for the same number of epochs. Every seed is one run of the trainer,
measured as `thalweg-train shift` measures it: corrupted test rows, and where there is one another data set. Runs that
are there are not run again. Prints a table last; --record and --picture write what is committed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.record import spread, write_record
from benchmarks.reproduce import experiment
from trainer import atomic_file
from trainer.config import override
from trainer.evaluation_report import DETECTION_SCORES
from trainer.figures import COLOURS, png
from trainer.recipes import RECIPES
from trainer.shift.results import METRICS, Measured, Options, Shifted, UnderShift
from trainer.shift.study import study


@dataclass(frozen=True)
class Setting:
    recipe: str
    sets: Sequence[str]
    rows: int  # of test rows and of the other data set
    ood: Sequence[str] = ()


ALL = 'methods=["ind","fge","swag","curve"]'
SETTINGS = {
    # 80 epochs each: four networks; two runs of FGE of 15 + 25; two ends and a curve of 40.
    "digits": Setting(
        "digits",
        [
            ALL,
            "ind.runs=4",
            "fge.runs=2",
            "fge.epochs=25",
            "fge.trace_every=0",
            "fge.swag_samples=2",
            "curve.epochs=40",
            "curve.members=7",
            "curve.grid=7",
        ],
        rows=500,
    ),
    # 60 epochs each: three networks; three runs of FGE of 15 + 5; two ends and a curve of 20.
    "fashion": Setting(
        "images",
        [
            ALL,
            "threads=1",
            "precision=bf16",
            "data.source=torchvision:FashionMNIST",
            "data.image_size=14",
            "data.train_rows=2000",
            "data.calibration_rows=1000",
            "data.evaluation_rows=1000",
            "data.augment=none",
            "model.factory=trainer.models.small_conv:small_conv",
            'model.options={"channels":[8,16,32]}',
            "sgd.batch_size=50",
            "endpoint.epochs=20",
            "ind.runs=3",
            "fge.start_epochs=[15]",
            "fge.epochs=5",
            "fge.cycle_epochs=2",
            "fge.alpha_1=0.1",
            "fge.alpha_2=0.001",
            "fge.runs=3",
            "fge.swag_samples=2",
            "curve.epochs=20",
            "curve.members=7",
            "curve.grid=7",
        ],
        rows=500,
        ood=("torchvision:MNIST",),
    ),
}
PREDICTORS = ("single network", "independent", "FGE", "SWAG", "curve")
PLOTTED = ("error", "nll", "calibration", "coverage")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SETTINGS), help="one of the settings (default: all)")
    parser.add_argument("--root", default="data", help="where torchvision keeps data sets")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any other setting")
    parser.add_argument("--rows", type=int, help="fewer rows, for a trial")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/shift"))
    parser.add_argument("--picture", type=Path, help="PNG of what grows with severity")
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    torch.set_num_threads(1)  # arrays of a few thousand rows are too small to share
    found: dict[str, dict[int, list[UnderShift]]] = {}
    tables = []
    for name in [options.only] if options.only else SETTINGS:
        found[name] = {
            seed: measured(name, seed, options).predictors
            for seed in range(options.first_seed, options.first_seed + options.seeds)
        }
        tables.append("\n".join(table(name, found[name])))
        print(f"\n{tables[-1]}", flush=True)
    kept = {name: {seed: [kept_of(e) for e in entries] for seed, entries in by.items()} for name, by in found.items()}
    if options.picture:
        atomic_file.write_bytes(options.picture, picture(kept))
    if options.record:
        write_record(
            options.record, "benchmarks.shift", "\n\n".join(tables),
            settings={name: asdict(setting) for name, setting in SETTINGS.items()}, found=kept,
        )  # fmt: skip
    return 0


def measured(name: str, seed: int, options: argparse.Namespace) -> Shifted:
    """Trains where that was not done, and measures from stored answers."""
    setting = SETTINGS[name]
    config = override(RECIPES[setting.recipe](seed), [*setting.sets, f"data.root={options.root}", *options.set])
    folder = experiment.run(config, options.out / name / f"seed-{seed}")
    return study(folder, Options(setting.ood, options.rows or setting.rows), experiment.PROGRESS).found


def of(entries: Sequence[UnderShift], predictor: str) -> UnderShift:
    return next(entry for entry in entries if entry.predictor == predictor)


def table(name: str, found: dict[int, list[UnderShift]]) -> list[str]:
    """Clean, then corrupted; each the mean and spread over seeds."""
    lines = [f"**{name}**, {len(found)} seeds"]
    parts: list[tuple[str, Callable[[UnderShift, Callable[[Measured], float]], float]]] = [
        ("clean", lambda entry, metric: metric(entry.clean)),
        ("corrupted, mean over kinds and severities", lambda entry, metric: entry.corrupted_mean(metric)),
        ("corrupted, severity 5", lambda entry, metric: entry.by_severity(metric)[-1]),
    ]
    for part, value in parts:
        heads = [
            f"{part}",
            "networks",
            "epochs",
            *(metric.title for metric in METRICS.values()),
            "lower NLL than one network",
            "than independent",
        ]
        lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for predictor in PREDICTORS:
            mine = [of(entries, predictor) for entries in found.values()]
            cells = [predictor, str(mine[0].members), str(mine[0].training_epochs)]
            cells += [spread([value(entry, m.of) for entry in mine], m.digits) for m in METRICS.values()]
            nll = METRICS["nll"].of
            for other in ("single network", "independent"):
                wins = sum(value(of(e, predictor), nll) < value(of(e, other), nll) for e in found.values())
                cells.append("" if other == predictor else f"{wins} of {len(found)}")
            lines.append(f"| {' | '.join(cells)} |")
    for source in SETTINGS[name].ood:
        lines += ["", *foreign_table(source, found)]
    return lines


def foreign_table(source: str, found: dict[int, list[UnderShift]]) -> list[str]:
    columns = [(score, what) for score in DETECTION_SCORES for what in ("auroc", "fpr95")]
    heads = [f"rows of {source}", *(f"{what.upper()}, {score}" for score, what in columns)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for predictor in PREDICTORS:
        mine = [of(entries, predictor).foreign[source] for entries in found.values()]
        cells = [
            spread([getattr(detections[score], what) for detections in mine], 3) if score in mine[0] else ""
            for score, what in columns
        ]
        lines.append(f"| {predictor} | {' | '.join(cells)} |")
    return lines


def kept_of(entry: UnderShift) -> dict[str, Any]:
    """What the record has of a predictor: means over kinds by severity, NLL and error by kind."""
    return {
        "predictor": entry.predictor,
        "members": entry.members,
        "training_epochs": entry.training_epochs,
        "threshold": entry.threshold,
        "by_severity": {name: rounded(entry.by_severity(metric.of)) for name, metric in METRICS.items()},
        "nll_by_kind": {
            kind: rounded([m.quality.nll for m in severities]) for kind, severities in entry.corrupted.items()
        },
        "error_by_kind": {
            kind: rounded([m.quality.error for m in severities]) for kind, severities in entry.corrupted.items()
        },
        "foreign": {source: {name: asdict(d) for name, d in by.items()} for source, by in entry.foreign.items()},
    }


def rounded(values: Sequence[float]) -> str:
    """On one line of the record."""
    return " ".join(f"{value:.5f}" for value in values)


def picture(kept: dict[str, dict[int, list[dict[str, Any]]]]) -> bytes:
    """By severity, mean over kinds and seeds; shaded: standard deviations over seeds. kept: as in the record."""

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(kept), len(PLOTTED), squeeze=False)
        for line, (name, by_seed) in zip(grid, kept.items(), strict=True):
            for axis, plotted in zip(line, PLOTTED, strict=True):
                for predictor in PREDICTORS:
                    mine = [next(e for e in entries if e["predictor"] == predictor) for entries in by_seed.values()]
                    lines = [[float(value) for value in e["by_severity"][plotted].split()] for e in mine]
                    columns, colour = list(zip(*lines, strict=True)), COLOURS[predictor]
                    means, places = [fmean(column) for column in columns], range(len(columns))
                    axis.plot(places, means, "o-", color=colour, markersize=3, linewidth=1.3, label=predictor)
                    if len(lines) > 1:
                        low, high = zip(
                            *((m - stdev(c), m + stdev(c)) for m, c in zip(means, columns, strict=True)), strict=True
                        )
                        axis.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
                axis.set_title(f"{name}: {METRICS[plotted].title}")
                axis.set_xticks(places)
            line[PLOTTED.index("coverage")].axhline(90, color="#888888", linewidth=1, linestyle="--")
        figure.legend(
            *grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PREDICTORS), fontsize=9,
            title="by severity of corruption, mean over kinds; 0: clean", title_fontsize=10,
        )  # fmt: skip

    return png(draw, (12.0, 0.9 + 2.6 * len(kept)))


if __name__ == "__main__":
    sys.exit(main())
