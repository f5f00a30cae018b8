"""Do cascades and prediction sets keep what they promise? On rows that took no part in fitting them.

For each ensemble: as trained, fitted on the calibration split and measured on the test split; then the two are shuffled
together and parted anew, many times, and everything that the trainer fits on calibration rows is fitted again. Sets are
measured as the thresholds alone make them; those that are served have the likeliest class as well. What is served is
what `trainer/cascade.py` and `trainer/conformal.py` compute here: tests compare the server with them.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from scipy.stats import betabinom
from torch import Tensor

from benchmarks.record import spread, write_record
from benchmarks.reproduce import experiment
from trainer import cascade, conformal, data, temperature
from trainer.config import Config, override
from trainer.recipes import RECIPES

RUNS = {
    "digits": ("digits", []),
    "fashion": (
        "images",
        [
            "data.source=torchvision:FashionMNIST",
            "data.train_rows=10240",
            "data.augment=none",
            'model.options={"depth":8}',
            'methods=["fge"]',
            "threads=1",
            "endpoint.epochs=8",
            "fge.start_epochs=[6]",
            "fge.epochs=8",
            "fge.cycle_epochs=1",
        ],
    ),
}
LOSSES = (0.001, 0.005, 0.01, 0.02)
LEVELS = (0.9, 0.95, 0.99)
POLICIES = ("mean", "random", "cascade")


@dataclass(frozen=True)
class Rows:
    logits_MNC: Tensor
    targets_N: Tensor

    def __getitem__(self, index: Tensor) -> "Rows":
        return Rows(self.logits_MNC[:, index], self.targets_N[index])

    def __len__(self) -> int:
        return len(self.targets_N)


@dataclass(frozen=True)
class Cascaded:
    loss: float  # stated
    threshold: float
    members_run: float  # the following on rows that were not fitted on
    accuracy: float
    accuracy_of_mean: float
    lost: float  # share that all members get right and the cascade wrong


@dataclass(frozen=True)
class Covered:
    policy: str
    level: float
    coverage: float  # of the thresholds alone, as the following
    size: float
    served: float  # with the likeliest class in every set


class Fitted:
    """What the trainer fits on calibration rows, for one stated loss."""

    def __init__(self, rows: Rows, loss: float) -> None:
        self.temperatures = temperature.fit_all(rows.logits_MNC, rows.targets_N)
        self.pooled = temperature.fit_pooled(rows.logits_MNC, self.temperatures, rows.targets_N)
        self.cascade = cascade.fit(rows.logits_MNC, self.temperatures, self.pooled, rows.targets_N, loss)

    def with_loss(self, rows: Rows, loss: float) -> cascade.Cascade:
        """The same for another loss."""
        threshold = cascade.threshold(self.cascade, rows.logits_MNC, self.temperatures, rows.targets_N, loss)
        return dataclasses.replace(self.cascade, threshold=threshold)

    def mean(self, rows: Rows) -> Tensor:
        return temperature.pool(rows.logits_MNC, self.temperatures, self.pooled)

    def probs(self, policy: str, rows: Rows) -> Tensor:
        """[K, N, C]: the K answers that a row may get."""
        if policy == "random":
            return torch.softmax(rows.logits_MNC.double() / self.temperatures[:, None, None], dim=-1)
        return (self.mean(rows) if policy == "mean" else self.cascade.answer(rows.logits_MNC, self.temperatures)[0])[
            None
        ]


def cascades(fitted: Fitted, rows: Rows, held_out: Rows, losses: Sequence[float]) -> Iterator[Cascaded]:
    mean_right = fitted.mean(held_out).argmax(1) == held_out.targets_N
    for loss in losses:
        made = fitted.with_loss(rows, loss)
        probs, run = made.answer(held_out.logits_MNC, fitted.temperatures)
        right = probs.argmax(1) == held_out.targets_N
        yield Cascaded(loss, made.threshold, _mean(run), _mean(right), _mean(mean_right), _mean(mean_right & ~right))


def sets(fitted: Fitted, scored: Rows, held_out: Rows) -> Iterator[Covered]:
    """scored: the rows that thresholds come from."""
    for policy in POLICIES:
        scores = conformal.scores(fitted.probs(policy, scored), scored.targets_N).T
        probs = fitted.probs(policy, held_out)
        own = conformal.scores(probs, held_out.targets_N)
        right = probs.argmax(-1) == held_out.targets_N
        for level in LEVELS:
            threshold = min(conformal.quantile(scores, level), 1.0)
            covered = own <= threshold
            size = (1.0 - probs <= threshold).sum(-1)
            yield Covered(policy, level, _mean(covered), _mean(size), _mean(covered | right))


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def resplits(every: Rows, calibration: int, count: int) -> Iterator[tuple[Rows, Rows]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        order = torch.randperm(len(every), generator=generator)
        yield every[order[:calibration]], every[order[calibration:]]


def halves(rows: Rows) -> tuple[Rows, Rows]:
    index = torch.arange(len(rows))
    return rows[index[::2]], rows[index[1::2]]


def measure(calibration: Rows, test: Rows, stated: float, count: int) -> tuple[dict[str, list[Any]], list[str]]:
    """What was found, and its tables. stated: the loss of the cascade whose sets are measured."""
    n = len(calibration)
    losses = [loss for loss in LOSSES if n >= 1 / loss - 1]
    fitted = Fitted(calibration, stated)
    trained = list(cascades(fitted, calibration, test, losses)), list(sets(fitted, calibration, test))
    every = Rows(
        torch.cat([calibration.logits_MNC, test.logits_MNC], 1), torch.cat([calibration.targets_N, test.targets_N])
    )
    again: list[list[Cascaded]] = []
    same: list[list[Covered]] = []
    apart: list[list[Covered]] = []
    for rows, held_out in resplits(every, n, count):
        refitted = Fitted(rows, stated)
        again.append(list(cascades(refitted, rows, held_out, losses)))
        same.append(list(sets(refitted, rows, held_out)))
        first, second = halves(rows)
        apart.append(list(sets(Fitted(first, stated), second, held_out)))
    found = {
        "cascades": [asdict(entry) for entry in trained[0]],
        "sets": [asdict(entry) for entry in trained[1]],
        "lost_by_resplit": _by_resplit(again, "lost"),
        "members_run_by_resplit": _by_resplit(again, "members_run"),
        "coverage_by_resplit": _by_resplit(same, "coverage"),
        "coverage_by_resplit_in_halves": _by_resplit(apart, "coverage"),
    }
    members = len(calibration.logits_MNC)
    return found, [
        *_cascade_table(trained[0], again, members),
        "",
        *_set_table(trained[1], same, apart, n, len(test)),
    ]


def _by_resplit(entries: Sequence[Sequence[Any]], name: str) -> list[str]:
    """A line a re-split, in the order of the table's rows."""
    return [" ".join(f"{getattr(entry, name):.5f}" for entry in line) for line in entries]


def _cascade_table(trained: list[Cascaded], again: list[list[Cascaded]], members: int) -> list[str]:
    lines = [
        f"| stated loss, points | members run of {members}, test | accuracy %, test | of all members | "
        f"lost on test, points | lost over {len(again)} re-splits | members run | accuracy lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry, others in zip(trained, zip(*again, strict=True), strict=True):
        cells = [
            f"{100 * entry.loss:g}",
            f"{entry.members_run:.2f}",
            f"{100 * entry.accuracy:.2f}",
            f"{100 * entry.accuracy_of_mean:.2f}",
            f"{100 * entry.lost:.2f}",
            spread([100 * other.lost for other in others], 3),
            spread([other.members_run for other in others], 2),
            spread([100 * (other.accuracy_of_mean - other.accuracy) for other in others], 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _set_table(
    trained: list[Covered], same: list[list[Covered]], apart: list[list[Covered]], rows: int, test: int
) -> list[str]:
    lines = [
        f"| policy | level % | covered on test % | 95 % of fits on {rows} rows lie in | within | classes | served % | "
        f"covered over {len(same)} re-splits | temperatures from other rows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry, together, parted in zip(trained, zip(*same, strict=True), zip(*apart, strict=True), strict=True):
        # Given the calibration rows the coverage is Beta(k, N + 1 − k), k the rank of the threshold among N scores.
        rank = -int(-(rows + 1) * entry.level // 1)
        low, high = (value / test for value in betabinom(test, rank, rows + 1 - rank).interval(0.95))
        cells = [
            entry.policy,
            f"{100 * entry.level:g}",
            f"{100 * entry.coverage:.2f}",
            f"{100 * low:.2f} – {100 * high:.2f}",
            "yes" if low <= entry.coverage <= high else "no",
            f"{entry.size:.2f}",
            f"{100 * entry.served:.2f}",
            spread([100 * other.coverage for other in together], 2),
            spread([100 * other.coverage for other in parted], 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def load(config: Config, folder: Path, method: str) -> tuple[Rows, Rows]:
    logits = safetensors.torch.load_file(folder / "logits" / f"{method}.safetensors")
    splits = data.load(config.data)
    calibration, test = (Rows(logits[name], splits.measured[name].labels) for name in ("calibration", "test"))
    return calibration, test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(RUNS), help="one of the runs (default: all)")
    parser.add_argument("--root", default="data", help="where torchvision keeps data sets")
    parser.add_argument("--resplits", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/uncertainty"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    torch.set_num_threads(1)  # arrays of a few thousand rows are too small to share
    found, tables = {}, []
    for name in [options.only] if options.only else RUNS:
        recipe, sets_of_run = RUNS[name]
        config = override(RECIPES[recipe](0), [*sets_of_run, f"data.root={options.root}"])
        folder = experiment.run(config, options.out / name)
        for method in config.methods:
            title = f"{name}-{method}"
            calibration, test = load(config, folder, method)
            found[title], lines = measure(calibration, test, config.export.cascade_loss, options.resplits)
            heading = f"**{title}**: {len(calibration)} calibration rows, {len(test)} test rows"
            tables.append("\n".join([heading, "", *lines]))
            print(tables[-1], flush=True)
    if options.record:
        write_record(options.record, "benchmarks.uncertainty", "\n\n".join(tables), runs=RUNS, found=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
