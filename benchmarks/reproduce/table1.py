"""Table 1: independent networks, SSE and FGE at equal budgets of one, two and three times B epochs.

For a budget of k·B each method runs k times from different initialisations and the models of all runs are averaged
(section 6); B is the epochs of one network. Each seed is one run of the trainer with three budgets; the smaller ones
are its first runs. Temperatures are fitted on the calibration split.

python -m benchmarks.reproduce.table1 --network small --seeds 3
python -m benchmarks.reproduce.table1 --network vgg16 --seeds 1        # a GPU: the paper's numbers
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.record import spread, write_record
from benchmarks.reproduce.experiment import config, parser, run
from protos.validate import validate
from trainer import evaluate, temperature
from trainer.config import Config
from trainer.data import Splits, load
from trainer.evaluate import Quality

BUDGETS = (1, 2, 3)
METHODS = ("ind", "sse", "fge")
SSE = {  # section 6: the best M and α0 that the authors found, at B epochs
    "small": [],
    "vgg16": ["sse.cycles=5", "sse.cycle_epochs=40", "sse.learning_rate=0.05"],
    "preresnet110": ["sse.cycles=4", "sse.cycle_epochs=37", "sse.learning_rate=0.1"],
    "wrn28-10": ["sse.cycles=5", "sse.cycle_epochs=40", "sse.learning_rate=0.1"],
}
PAPER = {  # test error on CIFAR-100, %
    "vgg16": {"ind": (27.4, 25.28, 24.45), "sse": (26.4, 25.16, 24.69), "fge": (25.74, 24.11, 23.54)},
    "preresnet110": {"ind": (21.37, 19.04, 18.59), "sse": (20.75, 19.28, 18.91), "fge": (20.16, 18.67, 18.21)},
    "wrn28-10": {"ind": (19.1, 17.48, 17.01), "sse": (17.78, 17.3, 16.97), "fge": (17.73, 16.95, 16.88)},
}


def main() -> int:
    options = parser(__doc__, list(SSE), "table1").parse_args()
    methods = ['methods=["ind","sse","fge"]', *(f"{name}.runs={max(BUDGETS)}" for name in METHODS)]
    found: dict[int, dict[str, list[Quality]]] = {}
    train_errors = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        settings = config(options, seed, [*methods, *SSE[options.network]])
        folder = run(settings, options.out / options.network / f"seed-{seed}")
        found[seed] = qualities(folder, settings)
        train_errors.append(100 * train_error(folder))
        print(f"seed {seed}: " + "  ".join(
            f"{name} {'/'.join(f'{100 * q.error:.2f}' for q in found[seed][name])}" for name in METHODS
        ), flush=True)  # fmt: skip

    table = "\n".join([
        *rows(options.network, found),
        "",
        f"Training error of one network, %: {spread(train_errors, 2)}. Epochs of one budget: "
        + ", ".join(f"{name} {epochs}" for name, epochs in one_budget(settings).items()) + ".",
    ])  # fmt: skip
    print(f"\n{table}")
    if options.record:
        behind = {seed: {name: [vars(q) for q in qs] for name, qs in by.items()} for seed, by in found.items()}
        write_record(options.record, "benchmarks.reproduce.table1", table, config=settings.to_dict(), found=behind)
    return 0


def one_budget(settings: Config) -> dict[str, int]:
    """Epochs that each method trains for a budget of one."""
    fge = settings.fge
    return {
        "ind": settings.endpoint.epochs,
        "sse": settings.sse.cycles * settings.sse.cycle_epochs,
        "fge": max(fge.start_epochs) + len(fge.start_epochs) * fge.epochs,
    }


def qualities(folder: Path, settings: Config) -> dict[str, list[Quality]]:
    """By method, for each budget: of the models of its first runs, on the test split."""
    splits = load(settings.data)
    return {name: [quality(folder, name, budget, settings, splits) for budget in BUDGETS] for name in METHODS}


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
    lines = [
        "| budget | method | error % | NLL | seeds in which FGE has the lower error, NLL | paper, error % |",
        "|---|---|---|---|---|---|",
    ]
    for index, budget in enumerate(BUDGETS):
        for name in METHODS:
            mine, fge = ([by[method][index] for by in found.values()] for method in (name, "fge"))
            wins = [
                sum(getattr(b, field) < getattr(a, field) for a, b in zip(mine, fge, strict=True))
                for field in ("error", "nll")
            ]
            against = "" if name == "fge" else f"{wins[0]}, {wins[1]} of {len(mine)}"
            paper = PAPER[network][name][index] if network in PAPER else ""
            error, nll = spread([100 * q.error for q in mine], 2), spread([q.nll for q in mine], 4)
            lines.append(f"| {budget}B | {name} | {error} | {nll} | {against} | {paper} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
