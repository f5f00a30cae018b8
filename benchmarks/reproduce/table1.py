"""Table 1: independent networks, SSE and FGE at equal budgets: multiples of B epochs, in the paper one to three.

For a budget of k·B each method runs k times from different initialisations and the models of all runs are averaged
(section 6); B is the epochs of one network. Each seed is one run of the trainer at the largest; the smaller ones
are its first runs. Temperatures are fitted on the calibration split.

python -m benchmarks.reproduce.table1 --budgets 2
python -m benchmarks.reproduce.table1 --budgets 1 --budget 0.25                # where the gain begins
python -m benchmarks.reproduce.table1 --network vgg16 --seeds 1                # a GPU: the paper's numbers
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.record import spread
from benchmarks.reproduce.experiment import SMALL, config, parser, publish, run, seeds
from protos.validate import validate
from trainer import evaluate, temperature
from trainer.config import Config
from trainer.data import Splits, load
from trainer.evaluate import Quality

METHODS = ("ind", "sse", "fge")
NETWORKS = {  # with the best M and α0 of SSE that the authors found, at B epochs (section 6)
    "small": ("images", SMALL),
    "vgg16": ("paper-vgg16", ["sse.cycles=5", "sse.cycle_epochs=40", "sse.learning_rate=0.05"]),
    "preresnet110": ("paper-preresnet110", ["sse.cycles=4", "sse.cycle_epochs=37", "sse.learning_rate=0.1"]),
    "wrn28-10": ("paper-wrn28-10", ["sse.cycles=5", "sse.cycle_epochs=40", "sse.learning_rate=0.1"]),
}
PAPER = {  # test error on CIFAR-100, %
    "vgg16": {"ind": (27.4, 25.28, 24.45), "sse": (26.4, 25.16, 24.69), "fge": (25.74, 24.11, 23.54)},
    "preresnet110": {"ind": (21.37, 19.04, 18.59), "sse": (20.75, 19.28, 18.91), "fge": (20.16, 18.67, 18.21)},
    "wrn28-10": {"ind": (19.1, 17.48, 17.01), "sse": (17.78, 17.3, 16.97), "fge": (17.73, 16.95, 16.88)},
}


def main() -> int:
    options_of = parser(__doc__, NETWORKS, "table1")
    options_of.add_argument("--budgets", type=int, default=3, help="the largest multiple of B; the paper's: 3")
    options = options_of.parse_args()
    budgets = range(1, options.budgets + 1)
    sets = [f"methods={json.dumps(METHODS)}", f"ind.runs={max(2, *budgets)}"]
    sets += [f"{name}.runs={max(budgets)}" for name in ("sse", "fge")]
    found: dict[int, dict[str, list[Quality]]] = {}
    train_errors = []
    for seed in seeds(options):
        settings = config(options, NETWORKS, seed, sets)
        folder = run(settings, options.out / options.network / f"seed-{seed}")
        splits = load(settings.data)
        found[seed] = {
            name: [quality(folder, name, budget, settings, splits) for budget in budgets] for name in METHODS
        }
        train_errors.append(100 * train_error(folder))
        print(f"seed {seed}: " + "  ".join(
            f"{name} {'/'.join(f'{100 * q.error:.2f}' for q in found[seed][name])}" for name in METHODS
        ), flush=True)  # fmt: skip

    about = f"Training error of one network, %: {spread(train_errors, 2)}. Epochs of one budget: " + ", ".join(
        f"{name} {epochs}" for name, epochs in one_budget(settings).items()
    )
    qualities = {seed: {name: [vars(q) for q in qs] for name, qs in by.items()} for seed, by in found.items()}
    publish(options, "table1", [*rows(options.network, found), "", f"{about}."], settings, found=qualities)
    return 0


def one_budget(settings: Config) -> dict[str, int]:
    """Epochs that each method trains for a budget of one."""
    fge = settings.fge
    return {
        "ind": settings.endpoint.epochs,
        "sse": settings.sse.cycles * settings.sse.cycle_epochs,
        "fge": max(fge.start_epochs) + len(fge.start_epochs) * fge.epochs,
    }


def quality(folder: Path, method: str, budget: int, settings: Config, splits: Splits) -> Quality:
    manifest = validate(folder / method).manifest
    logits = load_file(folder / "logits" / f"{method}.safetensors")
    runs_a_budget = len(settings.fge.start_epochs) if method == "fge" else 1
    chosen = [
        index for index, member in enumerate(manifest.members)
        if getattr(member, member.WhichOneof("origin")).run < budget * runs_a_budget
    ]  # fmt: skip
    temperatures = torch.tensor([manifest.members[index].temperature for index in chosen], dtype=torch.float64)
    pooled = temperature.fit_pooled(logits["calibration"][chosen], temperatures, splits.calibration.labels)
    return evaluate.quality(
        temperature.pool(logits["test"][chosen], temperatures, pooled), splits.measured["test"].labels
    )


def train_error(folder: Path) -> float:
    """Of the first network."""
    (metrics,) = [m for m in validate(folder / "ind").manifest.members[0].metrics if m.split == "train"]
    return metrics.error


def rows(network: str, found: dict[int, dict[str, list[Quality]]]) -> list[str]:
    """Error and NLL by method and budget; how often FGE was better with the same seed."""
    paper = PAPER.get(network, PAPER["preresnet110"])
    lines = [
        "| budget | method | error % | NLL | seeds in which FGE has the lower error, NLL "
        f"| paper{'' if network in PAPER else ', ResNet-110'}, error % |",
        "|---|---|---|---|---|---|",
    ]
    by_method = {name: list(zip(*(by[name] for by in found.values()), strict=True)) for name in METHODS}
    for index in range(len(by_method["ind"])):
        for name in METHODS:
            mine, fge = (by_method[method][index] for method in (name, "fge"))
            wins = [
                sum(getattr(b, field) < getattr(a, field) for a, b in zip(mine, fge, strict=True))
                for field in ("error", "nll")
            ]
            against = "" if name == "fge" else f"{wins[0]}, {wins[1]} of {len(mine)}"
            error, nll = spread([100 * q.error for q in mine], 2), spread([q.nll for q in mine], 4)
            beside = paper[name][index] if index < len(paper[name]) else ""
            lines.append(f"| {index + 1}B | {name} | {error} | {nll} | {against} | {beside} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
