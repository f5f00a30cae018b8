"""Which temperatures an ensemble should have: ways of fitting them on calibration rows, on several data sets and seeds.

Each way fits on the calibration split and is measured on the test split, by NLL as served and by calibrated
log-likelihood; then the two are shuffled together and parted anew, many times, for what luck with calibration rows
makes. Differences are to the way of the trainer, on equal rows. Policies that answer with one member have no mean, so
a way is measured on them as well. Runs that are there are not run again; `--out DIR` may hold those of another script.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from benchmarks import uncertainty
from benchmarks.record import spread, write_record
from benchmarks.reproduce import experiment
from benchmarks.uncertainty import Rows
from trainer import evaluate, metrics, temperature
from trainer.config import override
from trainer.recipes import RECIPES
from trainer.temperature import GREATEST, LEAST

# Small networks and few rows, so that a seed takes a minute of one core. Twenty classes of 50 rows each are learnt by
# heart, which makes a network far too sure.
SMALL = [
    'methods=["fge"]',
    "data.train_rows=1000",
    "data.calibration_rows=1000",
    "data.evaluation_rows=2000",
    "fge.trace_every=0",
    "fge.epochs=12",
    "fge.cycle_epochs=2",
]
RUNS = {
    "digits": ("digits", ["curve.grid=21", "fge.trace_every=0"]),
    "fashion": (
        "digits",
        [
            *SMALL,
            "name=fashion",
            "data.source=torchvision:FashionMNIST",
            "endpoint.epochs=12",
            "fge.start_epochs=[9]",
        ],
    ),
    "cifar100": (
        "digits",
        [
            *SMALL,
            "name=cifar100",
            "data.source=torchvision:CIFAR100",
            "data.classes=20",
            "endpoint.epochs=30",
            "fge.start_epochs=[22]",
            "fge.alpha_1=0.1",
        ],
    ),
    "fashion-preresnet": uncertainty.RUNS["fashion"],
}
SEEDS = {"fashion-preresnet": 1}  # three quarters of an hour each
TODAY = "members, then mean"
GRID = 24


@dataclass(frozen=True)
class Fitted:
    members: Tensor  # [M]
    mean: float

    def answer(self, rows: Rows) -> Tensor:
        """[N, C]: policy `mean`."""
        return temperature.pool(rows.logits_MNC, self.members, self.mean)


def nothing(rows: Rows) -> Fitted:
    return Fitted(torch.ones(len(rows.logits_MNC)), 1.0)


def members(rows: Rows) -> Fitted:
    """Each member's own."""
    return Fitted(temperature.fit_all(rows.logits_MNC, rows.targets_N), 1.0)


def mean(rows: Rows) -> Fitted:
    """One, of the mean."""
    ones = torch.ones(len(rows.logits_MNC))
    return Fitted(ones, temperature.fit_pooled(rows.logits_MNC, ones, rows.targets_N))


def members_then_mean(rows: Rows) -> Fitted:
    fitted = temperature.fit_all(rows.logits_MNC, rows.targets_N)
    return Fitted(fitted, temperature.fit_pooled(rows.logits_MNC, fitted, rows.targets_N))


def common(rows: Rows) -> Fitted:
    """The same for all members, such that their mean's NLL is least."""
    return Fitted(_common(rows, lambda divisors: 1.0), 1.0)


def common_then_mean(rows: Rows) -> Fitted:
    fitted = common(rows).members
    return Fitted(fitted, temperature.fit_pooled(rows.logits_MNC, fitted, rows.targets_N))


def common_with_mean(rows: Rows) -> Fitted:
    """Both at once: for each common temperature the best of the mean."""

    def best(divisors: Tensor) -> float:
        return temperature.fit_pooled(rows.logits_MNC, divisors, rows.targets_N)

    divisors = _common(rows, best)
    return Fitted(divisors, best(divisors))


def _common(rows: Rows, of_mean: Callable[[Tensor], float]) -> Tensor:
    def divisors(log_temperature: float) -> Tensor:
        return torch.full((len(rows.logits_MNC),), math.exp(log_temperature), dtype=torch.float64)

    def nll(log_temperature: float) -> float:
        shared = divisors(log_temperature)
        probs = temperature.pool(rows.logits_MNC, shared, of_mean(shared))
        return evaluate.quality(probs, rows.targets_N).nll

    # Of a mean the NLL need not be convex: the neighbourhood of the best of a grid.
    low, high = math.log(LEAST), math.log(GREATEST)
    grid = [low + (high - low) * i / GRID for i in range(GRID + 1)]
    best = min(range(GRID + 1), key=[nll(point) for point in grid].__getitem__)
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, GRID)])
    return divisors(float(minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x))


WAYS: dict[str, Callable[[Rows], Fitted]] = {
    "none": nothing,
    "members": members,
    "mean": mean,
    TODAY: members_then_mean,
    "common": common,
    "common, then mean": common_then_mean,
    "common with mean": common_with_mean,
}


@dataclass(frozen=True)
class Measured:
    """On rows that took no part in fitting."""

    nll: float  # policy mean
    log_likelihood: float  # calibrated, of the same
    ece: float
    nll_of_one: float  # policy random, and the first stage of a cascade: mean over members
    member_temperature: float  # mean over members
    mean_temperature: float


def measure(fitted: Fitted, rows: Rows, *, calibrated: bool = True) -> Measured:
    probs = fitted.answer(rows)
    quality = evaluate.quality(probs, rows.targets_N)
    alone = [
        evaluate.quality(temperature.temper(logits, float(divisor)), rows.targets_N).nll
        for logits, divisor in zip(rows.logits_MNC, fitted.members, strict=True)
    ]
    return Measured(
        nll=quality.nll,
        log_likelihood=metrics.calibrated_log_likelihood(probs, rows.targets_N) if calibrated else math.nan,
        ece=quality.ece,
        nll_of_one=statistics.fmean(alone),
        member_temperature=float(fitted.members.mean()),
        mean_temperature=fitted.mean,
    )


@dataclass(frozen=True)
class Seed:
    trained: dict[str, Measured]  # by way: fitted on calibration, measured on test
    again: dict[str, list[float]]  # by way: NLL of the mean over re-splits


def of_seed(calibration: Rows, test: Rows, resplits: int) -> Seed:
    trained = {name: measure(fit(calibration), test) for name, fit in WAYS.items()}
    every = Rows(
        torch.cat([calibration.logits_MNC, test.logits_MNC], 1), torch.cat([calibration.targets_N, test.targets_N])
    )
    again: dict[str, list[float]] = {name: [] for name in WAYS}
    for rows, held_out in uncertainty.resplits(every, len(calibration), resplits):
        for name, fit in WAYS.items():
            again[name].append(measure(fit(rows), held_out, calibrated=False).nll)
    return Seed(trained, again)


def table(seeds: Sequence[Seed]) -> list[str]:
    """Differences: way less the trainer's, in thousandths of a nat; below 0 is better, above for the likelihood."""
    lines = [
        "| way | T of members | T of mean | NLL | less the trainer's, 10⁻³ | better in seeds | over re-splits, 10⁻³ | "
        "calibrated log-likelihood, less the trainer's, 10⁻³ | ECE | NLL of one member | less the trainer's, 10⁻³ |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in WAYS:
        mine, theirs = ([seed.trained[way] for seed in seeds] for way in (name, TODAY))

        def less(field: str, mine: Sequence[Measured] = mine, theirs: Sequence[Measured] = theirs) -> list[float]:
            return [1e3 * (getattr(a, field) - getattr(b, field)) for a, b in zip(mine, theirs, strict=True)]

        again = [
            1e3 * statistics.fmean(a - b for a, b in zip(seed.again[name], seed.again[TODAY], strict=True))
            for seed in seeds
        ]
        cells = [
            name,
            spread([entry.member_temperature for entry in mine], 3),
            spread([entry.mean_temperature for entry in mine], 3),
            spread([entry.nll for entry in mine], 4),
            spread(less("nll"), 2),
            f"{sum(value < 0 for value in less('nll'))} of {len(seeds)}",
            spread(again, 2),
            spread(less("log_likelihood"), 2),
            spread([entry.ece for entry in mine], 4),
            spread([entry.nll_of_one for entry in mine], 4),
            spread(less("nll_of_one"), 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(RUNS), action="append", help="one of the runs (default: all)")
    parser.add_argument("--root", default="data", help="where torchvision keeps data sets")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--resplits", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/temperatures"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    torch.set_num_threads(1)  # arrays of a few thousand rows are too small to share
    found, tables = {}, []
    for run in options.only or RUNS:
        recipe, sets = RUNS[run]
        by_method: dict[str, list[Seed]] = {}
        sizes: dict[str, str] = {}
        for seed in range(min(options.seeds, SEEDS.get(run, options.seeds))):
            config = override(RECIPES[recipe](seed), [*sets, f"data.root={options.root}", "threads=1"])
            folder = experiment.run(config, options.out / run / f"seed-{seed}")
            for method in config.methods:
                calibration, test = uncertainty.load(config, folder, method)
                by_method.setdefault(method, []).append(of_seed(calibration, test, options.resplits))
                shape = len(calibration.logits_MNC), len(calibration), len(test)
                sizes[method] = "{} members, {} calibration and {} test rows".format(*shape)
        for method, seeds in by_method.items():
            found[f"{run}-{method}"] = [asdict(seed) for seed in seeds]
            tables.append("\n".join([f"**{run}, {method}**: {sizes[method]}, {len(seeds)} seeds", "", *table(seeds)]))
            print(tables[-1], flush=True)
    if options.record:
        write_record(options.record, "benchmarks.temperatures", "\n\n".join(tables), runs=RUNS, found=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
