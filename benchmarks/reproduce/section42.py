"""Section 4.2, Figure 3: the worst loss along a curve and its length, as the network's fully connected layers grow.

Each seed is a study of trainer/widths.py, with its own widths.png. The paper names neither epochs nor rates for this
network: in its size they are those of VGG-16.

python -m benchmarks.reproduce.section42 --points 11
python -m benchmarks.reproduce.section42 --network conv3-fc3                   # a GPU: the paper's numbers
"""

import json
import sys
from dataclasses import asdict

from benchmarks.record import spread
from benchmarks.reproduce.experiment import PROGRESS, SMALL, config, parser, publish, seeds
from trainer.evaluation_results import Width
from trainer.widths import study

NETWORK = [
    "model.factory=trainer.models.fully_connected:conv3_fc3",
    'model.options={"width":1.0}',
    "endpoint.learning_rate=0.05",
    "curve.grid=3",
    "curve.members=3",
]
NETWORKS = {
    "small": (
        "images",
        [
            *SMALL,
            *NETWORK,
            "data.classes=10",
            "data.train_rows=500",
            "data.calibration_rows=100",
            "data.evaluation_rows=500",
            "sgd.batch_size=25",
            "endpoint.epochs=40",
            "curve.epochs=40",
            "curve.learning_rate=0.03",
        ],
    ),
    "conv3-fc3": (
        "paper-vgg16",
        [*NETWORK, "name=conv3-fc3", "data.source=torchvision:CIFAR10"],
    ),
}
WIDTHS = {"small": [0.1, 0.3, 1.0], "conv3-fc3": [0.3, 0.5, 0.8, 1.0]}  # K


def main() -> int:
    options_of = parser(__doc__, NETWORKS, "section42")
    options_of.add_argument("--points", type=int, default=121, help="of each curve; default: %(default)s")
    options = options_of.parse_args()
    vary = f"model.options.width={json.dumps(WIDTHS[options.network])}"
    found: dict[int, list[Width]] = {}
    for seed in seeds(options):
        settings = config(options, NETWORKS, seed)
        folder = options.out / options.network / f"seed-{seed}"
        found[seed] = study(settings, vary, options.points, folder, PROGRESS)
        worst = "  ".join(f"K = {width.value}: {width.loss.maximum:.4f}" for width in found[seed])
        print(f"seed {seed}: largest loss on the curve {worst}", flush=True)
    behind = {seed: [asdict(width) for width in widths] for seed, widths in found.items()}
    publish(options, "section42", table(found), settings, found=behind)
    return 0


def table(found: dict[int, list[Width]]) -> list[str]:
    """A line a width."""
    lines = [
        "| K | parameters | train loss, worse endpoint | largest on the curve | difference | length ratio "
        "| test error %, worse endpoint | largest on the curve |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for widths in zip(*found.values(), strict=True):
        columns = [
            ([width.endpoint_loss for width in widths], 4),
            ([width.loss.maximum for width in widths], 4),
            ([width.loss.maximum - width.endpoint_loss for width in widths], 4),
            ([width.length_ratio for width in widths], 3),
            ([100 * width.endpoint_test_error for width in widths], 2),
            ([100 * width.test_error.maximum for width in widths], 2),
        ]
        cells = [str(widths[0].value), str(widths[0].parameters), *(spread(*column) for column in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
