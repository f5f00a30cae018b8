"""Section 4.2, Figure 3: the worst loss along a curve and its length, as the network's fully connected layers grow.

Each seed is a study of trainer/widths.py, with its own widths.png. The paper names neither epochs nor rates for its
network, 3conv3fc: in the paper's size they are those of VGG-16. In small, there are no convolutions.

python -m benchmarks.reproduce.section42 --points 13
python -m benchmarks.reproduce.section42 --network conv3-fc3                   # a GPU: the paper's numbers
"""

import sys
from dataclasses import asdict

from benchmarks.record import spread
from benchmarks.reproduce.experiment import PROGRESS, SMALL, config, parser, publish, seeds
from trainer.evaluation_results import Width
from trainer.widths import study

FEW = ["curve.grid=3", "curve.members=3"]  # for the runs' own reports; what is published is measured afterwards
NETWORKS = {
    "small": (
        "images",
        [
            *SMALL,
            *FEW,
            "model.factory=trainer.models.fully_connected:fully_connected",
            'model.options={"side":32}',
            "data.classes=10",
            "data.train_rows=500",
            "data.calibration_rows=100",
            "sgd.batch_size=25",
            "endpoint.epochs=80",
            "endpoint.learning_rate=0.01",
            "curve.epochs=80",
            "curve.learning_rate=0.01",
        ],
    ),
    "conv3-fc3": (
        "paper-vgg16",
        [
            *FEW,
            "name=conv3-fc3",
            "data.source=torchvision:CIFAR10",
            "model.factory=trainer.models.fully_connected:conv3_fc3",
        ],
    ),
}
VARY = {
    "small": "model.options.hidden=[[8,8],[16,16],[64,64],[256,256]]",
    "conv3-fc3": "model.options.width=[0.3,0.5,0.8,1.0]",  # K
}


def main() -> int:
    options_of = parser(__doc__, NETWORKS, "section42")
    options_of.add_argument("--points", type=int, default=121, help="of each curve; default: %(default)s")
    options = options_of.parse_args()
    found: dict[int, list[Width]] = {}
    for seed in seeds(options):
        settings = config(options, NETWORKS, seed)
        folder = options.out / options.network / f"seed-{seed}"
        found[seed] = study(settings, VARY[options.network], options.points, folder, PROGRESS)
        worst = "  ".join(f"{width.value}: {width.loss.maximum:.4f}" for width in found[seed])
        print(f"seed {seed}: largest loss on the curve {worst}", flush=True)
    behind = {seed: [asdict(width) for width in widths] for seed, widths in found.items()}
    publish(options, "section42", table(found), settings, found=behind)
    return 0


def table(found: dict[int, list[Width]]) -> list[str]:
    """A line a width."""
    lines = [
        "| width | parameters | train loss, worse endpoint | largest on the curve | difference | length ratio "
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
