"""What the scripts share: runs of the trainer by seed that resume, and the options of the command line.

Settings come in two sizes: `paper`, the numbers of the paper's section 6 and appendix A.5, which want a GPU; and
`small`, which finishes on two cores.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from trainer import finished_run, pipeline
from trainer.config import Config, override
from trainer.progress import Progress
from trainer.recipes import RECIPES


def parser(description: str | None, networks: Sequence[str], out: str) -> argparse.ArgumentParser:
    """The options that every script has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--network", choices=networks, default=networks[0], help="default: %(default)s")
    options.add_argument("--data", help="default: CIFAR-100, downloaded to --root")
    options.add_argument("--root", default="data", help="where torchvision keeps data sets")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--budget", type=float, default=1.0, help="factor on all epochs, such as 0.1 for a trial")
    options.add_argument("--threads", type=int, default=0, help="of torch; 0: as it chooses")
    options.add_argument("--out", type=Path, default=Path("runs/reproduce", out))
    options.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    return options


# A setting in which one network fits its training data on two cores: ten classes of 200 images without augmentation,
# learnt by heart. Chosen for that before any ensemble was trained; the proportions are the paper's.
SMALL = [
    "name=small",
    "data.classes=10",
    "data.train_rows=2000",
    "data.calibration_rows=500",
    "data.augment=none",
    'model.options={"depth":8}',
    "sgd.batch_size=50",
    "endpoint.epochs=40",
    "fge.start_epochs=[30]",
    "fge.epochs=10",
    "fge.cycle_epochs=2",
    "sse.cycles=4",
    "sse.cycle_epochs=10",
    "curve.epochs=60",
    "curve.members=16",
    "curve.grid=31",
]


def config(options: argparse.Namespace, seed: int, assignments: Sequence[str]) -> Config:
    """The network's recipe for this seed, with --data, --root, --budget and the script's own assignments applied."""
    recipe, sets = ("images", ["data.source=torchvision:CIFAR100", *SMALL]) if options.network == "small" else (
        f"paper-{options.network}", []
    )  # fmt: skip
    sets += [f"data.root={options.root}", f"threads={options.threads}", *assignments]
    if options.data:
        sets.append(f"data.source={options.data}")
    return _scaled(override(RECIPES[recipe](seed), sets), options.budget)


def _scaled(config: Config, factor: float) -> Config:
    """All lengths in epochs times the factor; cycles stay as long as they can."""
    if factor == 1.0:
        return config

    def epochs(count: int) -> int:
        return max(1, round(count * factor))

    endpoint = dataclasses.replace(config.endpoint, epochs=epochs(config.endpoint.epochs))
    length = epochs(config.fge.epochs)
    fge = dataclasses.replace(
        config.fge,
        start_epochs=sorted({epochs(epoch) for epoch in config.fge.start_epochs}),
        epochs=length,
        cycle_epochs=min(config.fge.cycle_epochs, length),
    )
    sse = dataclasses.replace(config.sse, cycle_epochs=epochs(config.sse.cycle_epochs))
    curve = dataclasses.replace(config.curve, epochs=epochs(config.curve.epochs))
    return dataclasses.replace(config, endpoint=endpoint, fge=fge, sse=sse, curve=curve)


def run(config: Config, folder: Path) -> Path:
    """The finished run's folder: trained, gone on with, or as it was found. Raises UserError."""
    if not finished_run.is_finished(config, folder):
        pipeline.run(config, folder, Progress(Console(stderr=True, highlight=False)))
    return folder
