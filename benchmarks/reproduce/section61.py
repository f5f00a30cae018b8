"""Section 6.1: five epochs of FGE from a network that is trained already, c = 2; the ensemble has the start in it.

In small, the first of Table 2's networks, trained to its end (with that run, if it is not there). In the paper's size,
torchvision's ResNet-50; ImageNet's rows are held in memory, 200 GB.

python -m benchmarks.reproduce.section61
python -m benchmarks.reproduce.section61 --from checkpoint.pt@120 --data torchvision:CIFAR100
python -m benchmarks.reproduce.section61 --network resnet50 --data folder:imagenet --seeds 1    # a GPU
"""

import argparse
import io
import sys
from pathlib import Path

import torch
import torchvision

from benchmarks.record import spread
from benchmarks.reproduce import table2
from benchmarks.reproduce.experiment import config, networks_of, parser, publish, run, seeds
from trainer import atomic_file, checkpoint_file, finished_run
from trainer.scores import Answered, Score, score

FGE = ['methods=["fge"]', "fge.epochs=5", "fge.cycle_epochs=2"]
NETWORKS = {
    "small": table2.NETWORKS["small"],
    "resnet50": (
        "images",
        [
            "name=resnet50",
            "data.source=folder:imagenet",
            "data.image_size=224",
            "data.calibration_rows=10000",
            "data.evaluation_rows=10000",
            "model.factory=torchvision:resnet50",
            "model.options={}",
            "sgd.batch_size=256",
            "sgd.weight_decay=1e-4",
            "fge.alpha_1=1e-3",
            "fge.alpha_2=1e-5",
            "precision=bf16",
            "channels_last=true",
        ],
    ),
}
PAPER = {"start": "23.87", "start and FGE": "23.31"}


def main() -> int:
    options_of = parser(__doc__, NETWORKS, "section61")
    options_of.add_argument("--from", dest="start", metavar="FILE[@EPOCHS]", help="a state_dict to start from")
    options = options_of.parse_args()
    found: dict[int, dict[str, Score]] = {}
    for seed in seeds(options):
        start = options.start or trained(options, seed)
        settings = config(options, NETWORKS, seed, [*FGE, f'start=["{start}"]'])
        found[seed] = measure(run(settings, options.out / options.network / f"seed-{seed}"), start)
        errors = "  ".join(f"{name} {100 * score.quality.error:.2f} %" for name, score in found[seed].items())
        print(f"seed {seed}: {errors}", flush=True)
    behind = {seed: {name: vars(score.quality) for name, score in by.items()} for seed, by in found.items()}
    publish(options, "section61", table(found), settings, found=behind)
    return 0


def trained(options: argparse.Namespace, seed: int) -> str:
    """FILE or FILE@EPOCHS of a network trained to its end."""
    if options.network == "small":
        shared = argparse.Namespace(**vars(options) | {"out": options.out.with_name("table2")})
        return f"{networks_of(table2.chain(shared, seed))[0]}@{table2.chain_config(shared, seed).endpoint.epochs}"
    path: Path = options.out / "resnet50.pt"
    if not path.exists():
        buffer = io.BytesIO()
        torch.save(torchvision.models.resnet50(weights="IMAGENET1K_V1").state_dict(), buffer)
        atomic_file.write_bytes(path, buffer.getvalue())
    return f"{path}@90"


def measure(folder: Path, start: str) -> dict[str, Score]:
    """Of the start, of FGE's snapshots, and of both together, on the test split."""
    finished = finished_run.load(folder)
    answers, epochs = finished.answers(), finished.training_epochs["FGE"]
    weights = checkpoint_file.load(finished.network, start).weights
    networks = [(weights, None), *((weights, statistics) for _, weights, statistics in finished.members("fge"))]
    given = [answers.of(weights, ("calibration", "test"), statistics) for weights, statistics in networks]
    parts = {"start": given[:1], "FGE": given[1:], "start and FGE": given}
    return {
        name: score(
            Answered(name, epochs, {split: torch.stack([one[split] for one in part]) for split in part[0]}),
            finished.splits,
            independent=(),
        )
        for name, part in parts.items()
    }


def table(found: dict[int, dict[str, Score]]) -> list[str]:
    lines = [
        "| ensemble | networks | error % | NLL | seeds better than the start: error, NLL | paper, ResNet-50, error % |",
        "|---|---|---|---|---|---|",
    ]
    starts = [by["start"].quality for by in found.values()]
    for name in ("start", "FGE", "start and FGE"):
        mine = [by[name].quality for by in found.values()]
        error, nll = spread([100 * q.error for q in mine], 2), spread([q.nll for q in mine], 4)
        wins = [
            sum(getattr(q, field) < getattr(start, field) for q, start in zip(mine, starts, strict=True))
            for field in ("error", "nll")
        ]
        against = "" if name == "start" else f"{wins[0]}, {wins[1]} of {len(mine)}"
        members = next(iter(found.values()))[name].members
        lines.append(f"| {name} | {members} | {error} | {nll} | {against} | {PAPER.get(name, '')} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
