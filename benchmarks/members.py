"""Does a member cost the same, however many there are? Time and CPU time for each of 1, 2, 4 … 64 members, in process.

One ensemble of the most members is loaded, and its first ones run on a batch: all numbers of members in one process,
in turns (`benchmarks.engines.take_turns`). Prints a table last, and writes it with every time behind it to --record.
"""

import argparse
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks import compact
from benchmarks.engines import Taken, take_turns, whole_ensemble
from benchmarks.record import write_record
from protos.validate import validate
from serving.networks import members
from serving.networks.cpu import usable_cpus
from serving.networks.device import choose
from serving.networks.executor import Executor
from serving.networks.members import Loaded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("runs/engines"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    network, most = f"preresnet-{options.depth}-x{options.width}", max(options.members)
    directory = options.out / f"{network}-{most}"
    if not directory.exists():
        compact.write(options.out / f"{network}-1-of-{most}", directory, options.depth, options.width, most)
    stored = validate(directory)
    engine = choose(options.device, options.engine, options.precision, usable_cpus(), options.rows)
    loaded = members.load(stored, engine).members
    works = {}
    for count in options.members:
        executor = Executor(engine, Loaded(loaded[:count]), len(stored.manifest.class_labels))
        works[str(count)] = whole_ensemble(executor, count)
    inputs = np.random.default_rng(0).integers(0, 256, (options.rows, 3, 32, 32), dtype=np.uint8)
    taken = take_turns(works, inputs, options.seconds)

    lines = table(f"{network}, {options.rows} rows, {engine.name}, {options.precision}", taken)
    print("\n".join(lines))
    if options.record:
        seconds = {name: asdict(times) for name, times in taken.items()}
        write_record(options.record, "benchmarks.members", "\n".join(lines), seconds=seconds)
    return 0


def table(title: str, taken: dict[str, Taken]) -> list[str]:
    """Medians; ratios to a member of the smallest ensemble, round by round, with quartiles."""
    lines = [
        f"| {title}: members | ms | ms a member | CPU ms a member | a member's time over the first line's | rounds |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(taken))
    for name, times in taken.items():
        ratios = np.divide(times.wall, taken[first].wall) * int(first) / int(name)
        low, ratio, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        wall, cpu = (1e3 * statistics.median(values) for values in (times.wall, times.cpu))
        cells = [name, f"{wall:.2f}", f"{wall / int(name):.3f}", f"{cpu / int(name):.3f}"]
        lines.append(f"| {' | '.join([*cells, f'{ratio:.3f} ({low:.3f}–{high:.3f})', str(len(times.wall))])} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
