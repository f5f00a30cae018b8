"""Ensembles under attack: digits and Fashion-MNIST, networks trained with and without an adversary, over seeds.

Each run has four points of a curve between two networks, and four independent networks: 4 × E epochs in all for each,
so one costs what the other costs, to train and to serve, and one network a quarter. `thalweg-train attack` measures
them; here its figures stand side by side. Every attack is stored as it ends: what is killed goes on, and --seeds can
grow.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.record import spread, write_record
from benchmarks.reproduce import experiment
from trainer.attack import harness
from trainer.attack.harness import ONE
from trainer.attack.results import Found, Options
from trainer.config import Config, override
from trainer.recipes import RECIPES

SHARED = ["threads=1", 'methods=["ind","curve"]', "ind.runs=4", "curve.members=4", "curve.grid=7"]
DIGITS = [*SHARED, "endpoint.epochs=20", "fge.start_epochs=[15]", "curve.epochs=40"]
FASHION = [
    *SHARED,
    "data.source=torchvision:FashionMNIST",
    "data.train_rows=2000",
    "data.calibration_rows=1000",
    "data.evaluation_rows=2000",
    "model.factory=benchmarks.robustness:strided_conv",
    "model.options={}",
    "endpoint.epochs=8",
    "fge.start_epochs=[6]",
    "curve.epochs=16",
]


def strided_conv(classes: int, in_channels: int) -> nn.Module:
    """For 28×28 images: three convolutions with BatchNorm, of which two halve the plane, and one linear layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes),
    )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    recipe: str
    sets: Sequence[str]
    epsilon: float  # L∞, levels of 255; of the attack, and of the adversary in training where there is one


SETTINGS = {
    "digits": Setting("digits", DIGITS, 32.0),
    "digits-robust": Setting("digits-robust", DIGITS, 32.0),
    "fashion": Setting("digits", FASHION, 16.0),
    "fashion-robust": Setting(
        "digits-robust", [*FASHION, "adversary.epsilon=16", "adversary.steps=5", "adversary.step_size=5"], 16.0
    ),
}
# A tenth to a third of the command's own budgets, so that all of it fits on one core.
SHORT = Options(
    pgd_steps=20, pgd_restarts=2, arc_steps=8, arc_classes=4, apgd_steps=30, apgd_targets=3, radius_steps=10,
    transfer_steps=20, queries=(1000,), repeat=(1, 12),
)  # fmt: skip

COLUMNS = (("curve", "expected"), ("curve", "mean"), ("curve", "all_members"), (ONE, "expected"),
           ("ind", "expected"), ("ind", "mean"))  # fmt: skip
HEADS = (
    "curve, random",
    "curve, mean",
    "curve, all members",
    "one network",
    "independent, random",
    "independent, mean",
)


def config(setting: Setting, seed: int, root: str) -> Config:
    return override(RECIPES[setting.recipe](seed), [*setting.sets, f"data.root={root}"])


def measure(name: str, seed: int, out: Path, root: str, budget: Options) -> Found:
    setting = SETTINGS[name]
    start = time.monotonic()
    folder = experiment.run(config(setting, seed, root), out / name / f"seed-{seed}")
    trained = time.monotonic() - start
    options = replace(budget, epsilon=setting.epsilon, seed=seed)
    found = harness.attack(folder / "curve", options, experiment.PROGRESS).found
    attacked = time.monotonic() - start - trained
    experiment.PROGRESS.say(f"setting={name} seed={seed} train_seconds={trained:.0f} attack_seconds={attacked:.0f}")
    return found


def table(found: Sequence[Found]) -> Iterator[str]:
    """Mean ± standard deviation over seeds, in %."""
    yield f"| attack | {' | '.join(HEADS)} |"
    yield f"|{'---|' * (len(HEADS) + 1)}"
    for attack in dict.fromkeys(line.attack for line in found[0].lines):
        cells = []
        for predictor, field in COLUMNS:
            lines = [line for each in found if (line := each.line(attack, predictor)) is not None]
            shares = [share for line in lines if (share := getattr(line.accuracy, field)) is not None]
            cells.append(spread([100 * share.value for share in shares], 1) if len(shares) == len(found) else "–")
        yield f"| {attack} | {' | '.join(cells)} |"


def title(name: str, found: Sequence[Found]) -> str:
    rows, seeds = found[0].rows, len(found)
    checks = [check for each in found for check in each.checks]
    failed = sorted({check.name for check in checks if not check.passed})
    passed = f"{sum(check.passed for check in checks)} of {len(checks)} checks of the attacks passed"
    return f"**{name}**, L∞ {SETTINGS[name].epsilon:g} of 255 levels, {rows} test rows, {seeds} seeds; {passed}" + (
        f"; failed: {', '.join(failed)}" if failed else ""
    )


def behind(found: Found) -> dict[str, Any]:
    """For the record: everything but the run's settings, which stand there once."""
    return {name: value for name, value in asdict(found).items() if name != "config"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), help="some of the settings (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", default="data", help="where torchvision keeps data sets")
    parser.add_argument("--rows", type=int, default=SHORT.rows, help="test rows attacked (default: %(default)s)")
    parser.add_argument("--white-box", action="store_true", help="without Square, which takes half of the time")
    parser.add_argument("--queries", type=int, nargs="+", help="of Square, a row")
    parser.add_argument("--repeat", type=int, nargs="+", help="times each point is asked about")
    parser.add_argument("--full", action="store_true", help="with the command's own budgets: about six times as long")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    torch.set_num_threads(1)
    budget = replace(Options() if options.full else SHORT, rows=options.rows)
    budget = replace(
        budget, queries=tuple(options.queries or budget.queries), repeat=tuple(options.repeat or budget.repeat)
    )
    if options.white_box:
        budget = replace(budget, queries=())
    found: dict[str, list[Found]] = {name: [] for name in options.only or SETTINGS}
    for seed in range(options.seeds):
        for name, of_name in found.items():
            of_name.append(measure(name, seed, options.out, options.root, budget))
    tables = ["\n".join([title(name, of_name), "", *table(of_name)]) for name, of_name in found.items()]
    print("\n\n".join(tables))
    if options.record:
        write_record(
            options.record,
            "benchmarks.robustness",
            "\n\n".join(tables),
            pyautoattack=version("pyautoattack"),
            configs={name: config(SETTINGS[name], 0, options.root).to_dict() for name in found},
            found={name: [behind(each) for each in of_name] for name, of_name in found.items()},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
