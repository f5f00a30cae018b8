"""Does `thalweg-train sanitize` remove a planted backdoor, and does it do better than fine-tuning or starting anew?

For each data set and seed a network is trained on poisoned rows (benchmarks/poison.py) and repaired from clean ones.
All methods have the same rows, steps and rates. Choices are made on calibration rows; the table is of test rows.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from benchmarks import poison
from benchmarks.record import spread, write_record
from trainer import atomic_file, batchnorm, pipeline, train
from trainer.config import Config, override
from trainer.data import Split, Splits
from trainer.network import Placement
from trainer.objective import Objective
from trainer.progress import Progress
from trainer.recipes import RECIPES
from trainer.sanitize.measure import Score
from trainer.sanitize.repair import SETTINGS, repair
from trainer.sanitize.results import METHODS, Options, Results
from trainer.seeding import seed_stage

PROGRESS = Progress(Console(stderr=True, highlight=False))
RATES = {"digits": (0.3, 0.1, 0.03), "cifar100": (0.3, 0.1)}
SETS = {
    "digits": (
        "digits",
        ["data.train_rows=300", "data.calibration_rows=250", "endpoint.epochs=20", "curve.epochs=100"],
    ),
    "cifar100": (
        "images",
        [
            "name=cifar100-10",
            "data.train_rows=500",
            "data.calibration_rows=500",
            'model.options={"depth":8}',
            "sgd.batch_size=50",
            "precision=bf16",
            "channels_last=true",
            "endpoint.epochs=12",
            "fge.start_epochs=[12]",  # of no use here, but checked
            "curve.epochs=30",
            "threads=1",
        ],
    ),
}
TS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # where the curves are measured, and the same from the other end
GRID = ["curve.grid=11", "curve.members=5"]


def settings(name: str, seed: int) -> Config:
    recipe, changes = SETS[name]
    return override(RECIPES[recipe](seed), [*SETTINGS, *GRID, f"data.source=benchmarks.poison:clean_{name}", *changes])


def plant(name: str, config: Config, path: Path) -> None:
    """Trains the suspect on poisoned rows, as an attacker would who has the same recipe; a file that is there stays."""
    if path.exists():
        return
    torch.set_num_threads(config.threads)
    parts = poison.PARTS[name]()
    rows = poison.poison(parts.attacker, config.seed)
    split = Split(rows.inputs, rows.targets)
    splits = Splits(name, split, split, split, parts.class_labels)
    seed_stage(config.seed, "attacker")
    network = pipeline.build_network(config, splits)
    network.to(Placement(training_dtype=pipeline.DTYPES[config.precision], channels_last=config.channels_last))
    with PROGRESS.stage(f"{name} suspect {config.seed}", config.endpoint.epochs) as stage:
        weights = train.endpoint(Objective(network, cross_entropy), split, config.endpoint, config.sgd, stage)[
            config.endpoint.epochs
        ]
    tensors = network.unflatten(weights) | batchnorm.recalibrate(network, weights, split)
    whole = {key: tensor.clone() for key, tensor in tensors.items()}  # no views of one vector
    atomic_file.write_bytes(path, safetensors.torch.save(whole))


def run(name: str, seed: int, out: Path) -> Results:
    config, folder = settings(name, seed), out / name / str(seed)
    suspect = folder / "suspect.safetensors"
    plant(name, config, suspect)
    options = Options(
        f"{suspect}@{config.endpoint.epochs}",
        trigger="benchmarks.poison:stamp",
        target=poison.PARTS[name]().class_labels[poison.TARGET],
        rates=RATES[name],
    )
    return repair(config, options, folder / "repair", PROGRESS).results


def table(found: Sequence[Results]) -> list[str]:
    """found: a seed each."""
    lines = ["| network | accuracy % | attack success % | recommended |", "|---|---|---|---|"]

    def line(name: str, scores: Sequence[Score], chosen: str = "") -> None:
        accuracy = spread([100 * score.accuracy.value for score in scores], 1)
        attack = spread([100 * _attack(score) for score in scores], 1)
        lines.append(f"| {name} | {accuracy} | {attack} | {chosen} |")

    line("suspect", [results.suspect.test for results in found])
    for rate in found[0].options.rates:
        line(f"curve, t = 0.5, rate {rate:g}", [_at(results, rate, 0.5) for results in found])
    for method in METHODS:
        for rate in found[0].options.rates:
            times = sum((results.recommended.method, results.recommended.rate) == (method, rate) for results in found)
            name = f"{method}{', ensemble' if method == 'curve' else ''}, rate {rate:g}"
            line(name, [_of(results, method, rate) for results in found], f"{times} of {len(found)}")
    line("what is recommended", [results.recommended.scores.test for results in found])
    return lines


def ends_table(found: Sequence[Results]) -> list[str]:
    """Attack success by t: means over seeds and both directions."""
    lines = [f"| rate | {' | '.join(f't = {t:g}' for t in TS)} |", "|---" * (len(TS) + 1) + "|"]
    for rate in found[0].options.rates:
        cells = []
        for t in TS:
            shares = [_attack(_at(results, rate, at)) for results in found for at in {t, 1.0 - t}]
            cells.append(f"{100 * statistics.fmean(shares):.1f}")
        lines.append(f"| {rate:g} | {' | '.join(cells)} |")
    return lines


def _attack(score: Score) -> float:
    assert score.attack_success is not None
    return score.attack_success.value


def _at(results: Results, rate: float, t: float) -> Score:
    return next(point.scores.test for point in results.curves[f"{rate:g}"] if abs(point.t - t) < 1e-9)


def _of(results: Results, method: str, rate: float) -> Score:
    found = results.candidates
    return next(each.scores.test for each in found if (each.method, each.rate) == (method, rate))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SETS), help="one of the data sets (default: all)")
    parser.add_argument("--root", default="data", help="where torchvision keeps data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/backdoor"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    poison.ROOT = options.root
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    behind, tables = {}, []
    for name in [options.only] if options.only else SETS:
        found = [run(name, seed, options.out) for seed in seeds]
        rows = found[0].rows
        title = f"**{name}**: {rows['train']} clean rows, {rows['test']} test rows, {found[0].steps} steps"
        tables.append("\n".join([title, "", *table(found), "", "Attack success % by t:", "", *ends_table(found)]))
        print(tables[-1], flush=True)
        behind[name] = {"config": found[0].config, "seeds": [_figures(results) for results in found]}
    if options.record:
        write_record(options.record, "benchmarks.backdoor", "\n\n".join(tables), found=behind)
    return 0


def _figures(results: Results) -> dict[str, object]:
    """On test rows, accuracy and attack success; along the curves in the order of their points."""

    def pair(score: Score) -> str:
        return f"{score.accuracy.value:.4f} {_attack(score):.4f}"

    return {
        "suspect": pair(results.suspect.test),
        "candidates": {candidate.name: pair(candidate.scores.test) for candidate in results.candidates},
        "on calibration": {candidate.name: pair(candidate.scores.calibration) for candidate in results.candidates},
        "recommended": results.recommended.name,
        "curves": {rate: [pair(point.scores.test) for point in points] for rate, points in results.curves.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
