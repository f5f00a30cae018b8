"""What the scripts share: runs of the trainer by seed that resume, and the options of the command line.

Settings come in two sizes: `paper`, the numbers of the paper's section 6 and appendix A.5, which want a GPU; and
`small`, which finishes on two cores.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.record import write_record
from protos.validate import validate
from trainer import finished_run, pipeline, state_dicts
from trainer.config import Config, override
from trainer.progress import Progress
from trainer.recipes import RECIPES

Networks = Mapping[str, tuple[str, Sequence[str]]]  # by --network: a recipe, and what the experiment sets in it
PROGRESS = Progress(Console(stderr=True, highlight=False))


def parser(description: str | None, networks: Networks, out: str) -> argparse.ArgumentParser:
    """The options that every script has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--network", choices=networks, default=next(iter(networks)), help="default: %(default)s")
    options.add_argument("--data", help="a source, as `thalweg-train run` takes it; default: the experiment's own")
    options.add_argument("--root", default="data", help="where torchvision keeps data sets")
    options.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any other setting")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--budget", type=float, default=1.0, help="factor on all epochs, such as 0.1 for a trial")
    options.add_argument("--threads", type=int, default=0, help="of torch; 0: as it chooses")
    options.add_argument("--out", type=Path, default=Path("runs/reproduce", out))
    options.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    return options


def seeds(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


# A setting in which one network fits its training data on one core: twenty classes of 100 images without augmentation,
# learnt by heart. Chosen for that, and for its 2,000 test rows, before any ensemble was trained in it. FGE's
# and SSE's numbers were chosen on the calibration split of another seed (tuning.py, docs/log.md).
SMALL = [
    "name=small",
    "data.source=torchvision:CIFAR100",
    "precision=bf16",
    "channels_last=true",
    "data.classes=20",
    "data.train_rows=2000",
    "data.calibration_rows=1000",
    "data.augment=none",
    'model.options={"depth":8}',
    "sgd.batch_size=50",
    "endpoint.epochs=48",
    "fge.start_epochs=[37]",
    "fge.epochs=11",
    "fge.cycle_epochs=2",
    "fge.alpha_1=0.2",
    "fge.alpha_2=0.002",
    "sse.cycles=2",
    "sse.cycle_epochs=24",
    "sse.learning_rate=0.1",
    "curve.epochs=60",
    "curve.members=16",
    "curve.grid=31",
]


def config(options: argparse.Namespace, networks: Networks, seed: int, assignments: Sequence[str] = ()) -> Config:
    """The network's recipe for this seed, with the script's settings, then the command line's."""
    recipe, sets = networks[options.network]
    sets = [*sets, *assignments, f"data.root={options.root}", f"threads={options.threads}", *options.set]
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
        pipeline.run(config, folder, PROGRESS)
    return folder


def networks_of(folder: Path, method: str = "ind") -> list[Path]:
    """The members of a finished run's ensemble, a state_dict each: what another run can start from."""
    stored, out = validate(folder / method), folder / f"{method}-networks"
    if not out.exists():
        state_dicts.write(stored, out)
    return [out / f"{member.id}.safetensors" for member in stored.manifest.members]


def publish(options: argparse.Namespace, script: str, lines: Sequence[str], settings: Config, **behind: Any) -> None:
    """Prints the table; writes it to --record with everything behind it."""
    table = "\n".join(lines)
    print(f"\n{table}")
    if options.record:
        write_record(options.record, f"benchmarks.reproduce.{script}", table, config=settings.to_dict(), **behind)
