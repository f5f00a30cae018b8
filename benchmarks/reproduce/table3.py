"""Table 3: perplexity of a recurrent network along a Bezier curve and the straight segment.

--data text:FOLDER, or text:TRAIN_FILE,TEST_FILE. In the paper's size, Penn Treebank. The last rows of the training text
are the validation split. No temperatures.

python -m benchmarks.reproduce.table3 --data text:wikitext-2/valid.txt,wikitext-2/test.txt
python -m benchmarks.reproduce.table3 --network lstm --data text:ptb --seeds 1     # a GPU: the paper's numbers
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.nn.functional import cross_entropy

from benchmarks.record import spread
from benchmarks.reproduce.experiment import PROGRESS, config, parser, publish, run, seeds
from trainer import finished_run, paths
from trainer.answers import Answers
from trainer.curve import Curve
from trainer.finished_run import FinishedRun

CURVE = ['methods=["curve"]', "curve.grid=3", "curve.members=3"]
SMALL = [  # a thousand words, two layers of 64: for a text of 200,000 words, such as WikiText-2's validation part
    *CURVE,
    "name=small",
    "data.vocabulary=1000",
    "data.train_rows=4000",
    "data.calibration_rows=200",
    "data.evaluation_rows=200",
    'model.options={"hidden":64,"dropout":0.2,"scale":0.1}',
    "endpoint.epochs=10",
    "fge.start_epochs=[7]",  # not run
    "curve.epochs=10",
]
NETWORKS = {"small": ("paper-lstm", SMALL), "lstm": ("paper-lstm", CURVE)}
SPLITS = {"train": "train", "calibration": "validation", "test": "test"}
PAPER = {  # Penn Treebank: Min and Max on train, validation and test
    "single": (37.5, 39.2, 82.7, 83.1, 78.7, 78.9),
    "segment": (37.5, 596.3, 82.7, 682.1, 78.7, 615.7),
    "bezier": (29.8, 39.2, 82.7, 88.7, 78.7, 84.0),
}
Perplexities = Mapping[str, Sequence[float]]  # by split, one a point


def main() -> int:
    options_of = parser(__doc__, NETWORKS, "table3")
    options_of.add_argument("--points", type=int, default=11, help="of each path; default: %(default)s")
    options = options_of.parse_args()
    found: dict[int, dict[str, Perplexities]] = {}
    for seed in seeds(options):
        settings = config(options, NETWORKS, seed)
        found[seed] = measure(run(settings, options.out / options.network / f"seed-{seed}"), options.points)
        worst = "  ".join(f"{name} {max(by['test']):.1f}" for name, by in found[seed].items())
        print(f"seed {seed}: largest test perplexity {worst}", flush=True)
    publish(options, "table3", table(found), settings, found=found)
    return 0


def measure(folder: Path, points: int) -> dict[str, Perplexities]:
    """By path; "single" are the two networks at its ends."""
    finished = finished_run.load(folder)
    answers, curve = finished.answers(), finished.curve()
    segment = Curve("polygonal-chain", [curve.control_points[0], curve.control_points[-1]])
    found = {name: along(path, points, answers, finished) for name, path in (("segment", segment), ("bezier", curve))}
    return {"single": {split: [values[0], values[-1]] for split, values in found["bezier"].items()}, **found}


def along(path: Curve, points: int, answers: Answers, finished: FinishedRun) -> Perplexities:
    found: dict[str, list[float]] = {split: [] for split in SPLITS}
    with PROGRESS.counting("path", points) as seen:
        for done, t in enumerate(paths.grid(points), 1):
            given = answers.of(path.point(t), SPLITS)
            for split, answer in given.items():
                if split == "train":
                    nll = float(answer[0])  # its mean alone is kept
                else:
                    nll = float(cross_entropy(answer.double(), finished.splits.measured[split].labels))
                found[split].append(math.exp(nll))
            seen(done)
    return found


def table(found: Mapping[int, Mapping[str, Perplexities]]) -> list[str]:
    """A line a path, the paper's below ours."""
    heads = " | ".join(f"{name} Min | Max" for name in SPLITS.values())
    lines = [f"| path | | {heads} |", "|---|---|" + "---|" * 2 * len(SPLITS)]
    for name, paper in PAPER.items():
        rows = [by[name] for by in found.values()]
        cells = [spread([end(row[split]) for row in rows], 1) for split in SPLITS for end in (min, max)]
        lines += [f"| {name} | ours | {' | '.join(cells)} |", f"| | paper | {' | '.join(map(str, paper))} |"]
    return lines


if __name__ == "__main__":
    sys.exit(main())
