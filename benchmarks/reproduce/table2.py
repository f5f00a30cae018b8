"""Table 2: train loss, train error and test error along a Bezier curve, a polygonal chain and the straight segment.

Min, Int and Max as in appendix A.3: Int is the mean over arc length, the loss has the L2 term. Each seed is a run with
three independent networks and a chain between the first two (section 4.3 uses it again), and one with a Bezier curve
between the same two.

python -m benchmarks.reproduce.table2 --points 13
python -m benchmarks.reproduce.table2 --network preresnet164 --seeds 1         # a GPU: the paper's numbers
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from benchmarks.record import spread
from benchmarks.reproduce.experiment import PROGRESS, SMALL, config, networks_of, parser, publish, run, seeds
from trainer import finished_run, paths
from trainer.config import Config
from trainer.curve import Curve

# Half of Table 1's rows and classes: of each seed there are three networks and two curves.
SHORTER = [
    "data.classes=10",
    "data.train_rows=1000",
    "data.calibration_rows=500",
    "sgd.batch_size=25",
    "endpoint.epochs=36",
    "fge.start_epochs=[27]",  # not run
    "curve.epochs=36",
]
NETWORKS = {
    "small": ("images", [*SMALL, *SHORTER]),
    "vgg16": ("paper-vgg16", []),
    "preresnet164": ("paper-preresnet164", []),
}
# The runs' own reports need few points: what is published is measured afterwards, from stored answers.
FEW = ["curve.grid=3", "curve.members=3"]
METRICS = ("train_loss", "train_error", "test_error")
PAPER = {  # CIFAR-100: length ratio, then Min, Int, Max of each metric; of single networks no Int
    "vgg16": {
        "single": "| – | 0.1401 | – | 0.141 | 0.05 | – | 0.06 | 29.44 | – | 29.94 |",
        "segment": "| 1 | 0.1374 | 3.6056 | 4.9413 | 0.04 | 73.25 | 99 | 29.44 | 80.59 | 99.01 |",
        "bezier": "| 1.52 | 0.0952 | 0.1069 | 0.141 | 0.03 | 0.08 | 0.18 | 29.28 | 30.49 | 31.23 |",
        "polygonal-chain": "| 1.64 | 0.1184 | 0.1388 | 0.1997 | 0.04 | 0.19 | 0.39 | 29.33 | 30.13 | 30.92 |",
    },
    "preresnet164": {
        "single": "| – | 0.079 | – | 0.0799 | 0.06 | – | 0.09 | 24.41 | – | 24.4 |",
        "segment": "| 1 | 0.0757 | 1.8444 | 5.5289 | 0.06 | 38.03 | 98.65 | 24.4 | 53.69 | 98.83 |",
        "bezier": "| 1.87 | 0.0736 | 0.0832 | 0.0979 | 0.05 | 0.28 | 0.96 | 24.15 | 24.99 | 26.1 |",
        "polygonal-chain": "| 2.56 | 0.0674 | 0.0778 | 0.1086 | 0.06 | 0.28 | 0.85 | 23.98 | 24.92 | 26.12 |",
    },
}
Row = Mapping[str, Sequence[float | None]]  # Min, Int and Max by metric; the length ratio, alone


def main() -> int:
    options_of = parser(__doc__, NETWORKS, "table2")
    options_of.add_argument("--points", type=int, default=121, help="of each path; the paper's: %(default)s")
    options = options_of.parse_args()
    found: dict[int, dict[str, Row]] = {}
    for seed in seeds(options):
        settings = chain_config(options, seed)
        found[seed] = measure(chain(options, seed), bezier(options, seed), options.points)
        worst = {name: 100 * row["test_error"][-1] for name, row in found[seed].items()}
        print(f"seed {seed}: largest test error, %: {worst}", flush=True)
    lines = table(options.network, found)
    publish(options, "table2", lines, settings, found=found)
    return 0


def chain_config(options: argparse.Namespace, seed: int) -> Config:
    sets = [*FEW, 'methods=["ind","curve"]', "ind.runs=3", "curve.kind=polygonal-chain"]
    return config(options, NETWORKS, seed, sets)


def chain(options: argparse.Namespace, seed: int) -> Path:
    """The finished run of three independent networks and the chain between the first two."""
    return run(chain_config(options, seed), options.out / options.network / f"seed-{seed}" / "polygonal-chain")


def bezier(options: argparse.Namespace, seed: int) -> Path:
    """That of the Bezier curve between the same two."""
    epochs = chain_config(options, seed).endpoint.epochs
    first, second, _ = (f"{path}@{epochs}" for path in networks_of(chain(options, seed)))
    settings = config(options, NETWORKS, seed, [*FEW, 'methods=["curve"]', f'start=["{first}","{second}"]'])
    return run(settings, options.out / options.network / f"seed-{seed}" / "bezier")


def measure(chain_run: Path, bezier_run: Path, points: int) -> dict[str, Row]:
    """By path; "single" are the two networks at its ends."""
    found: dict[str, Row] = {}
    for name, folder in (("bezier", bezier_run), ("polygonal-chain", chain_run)):
        finished = finished_run.load(folder)
        answers, decay = finished.answers(), finished.config.sgd.weight_decay
        curve = finished.curve()
        segment = Curve("polygonal-chain", [curve.control_points[0], curve.control_points[-1]])
        for what, along in {name: curve, "segment": segment}.items():
            if what not in found:
                path = paths.along(what, along, points, answers, finished.splits, decay, PROGRESS)
                found[what] = {metric: astuple(path.summary(metric)) for metric in METRICS}
                found[what] |= {"length_ratio": [along.length() / segment.length()]}
    ends = {metric: [getattr(path, metric)[end] for end in (0, -1)] for metric in METRICS}
    found["single"] = {metric: (min(values), None, max(values)) for metric, values in ends.items()}
    found["single"] |= {"length_ratio": [None]}
    return found


def table(network: str, found: Mapping[int, Mapping[str, Row]]) -> list[str]:
    """A line a path, the paper's below ours; how far each path rises above its worse end, in the worst seed."""
    paper = network if network in PAPER else "preresnet164"
    lines = [
        "| path | | length ratio | train loss Min | Int | Max | train error % Min | Int | Max "
        "| test error % Min | Int | Max |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in PAPER[paper]:
        rows = [by[name] for by in found.values()]
        cells = [cell([row["length_ratio"][0] for row in rows], 1, 2)]
        for metric in METRICS:
            scale, digits = (100, 2) if metric.endswith("error") else (1, 4)
            cells += [cell([row[metric][part] for row in rows], scale, digits) for part in range(3)]
        lines += [f"| {name} | ours | {' | '.join(cells)} |", f"| | paper, {paper} {PAPER[paper][name]}"]
    above = {
        name: max(100 * (by[name]["test_error"][-1] - by["single"]["test_error"][-1]) for by in found.values())
        for name in ("bezier", "polygonal-chain", "segment")
    }
    told = ", ".join(f"{name} {points:.2f}" for name, points in above.items())
    return [*lines, "", f"Largest test error above the worse end's, points, in the worst seed: {told}."]


def cell(values: Sequence[float | None], scale: float, digits: int) -> str:
    """Mean and standard deviation; a dash if there is no such number."""
    return "–" if None in values else spread([scale * value for value in values], digits)


if __name__ == "__main__":
    sys.exit(main())
