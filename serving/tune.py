"""`thalweg-serve tune DIR`: measures this machine with an ensemble, and writes the settings that are best for it.

Every candidate is loaded as the server would load it and must pass the probe; then all take turns, another one first
in every round, so that a slow moment of the machine falls on all. `choose` decides from the medians.
"""

import argparse
import gc
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from protos.graph import DATATYPES
from protos.stored_ensemble import StoredEnsemble
from protos.validate import validate
from serving.errors import StartupError
from serving.networks import device, members, probe
from serving.networks.cpu import usable_cpus
from serving.networks.engines import buckets
from serving.networks.engines.engine import PRECISIONS, Engine
from serving.networks.executor import Executor
from serving.networks.members import Memory
from serving.networks.memory import give_back, resident_bytes

GOALS = ("throughput", "latency")
ENOUGH = 0.97  # of the best rate: beyond, a larger batch only makes those behind it wait
LEAST_ROUNDS = 3
TURNS = 10  # of each candidate, that its largest batch may take at most of the time
MIB = 2**20

Work = Callable[[int], object]  # so many rows through all members


@dataclass(frozen=True)
class Candidate:
    """Each field is the setting of that name."""

    device: str = "cpu"
    engine: str = "onnxruntime"
    precision: str = "fp32"
    threads: int = 1
    cuda_graphs: bool = False
    memory: str = Memory.FAST

    def __str__(self) -> str:
        extras = [f"{self.threads} threads" if self.device == "cpu" else "", "graphs" if self.cuda_graphs else ""]
        return ", ".join(filter(None, [self.device, self.engine, self.precision, *extras, self.memory]))


# Median seconds of a batch, by its rows.
Times = Mapping[int, float]


@dataclass(frozen=True)
class Choice:
    candidate: Candidate
    max_batch_rows: int
    why: str


def main(arguments: Sequence[str]) -> int:
    """Raises StartupError, InvalidEnsemble."""
    options = _parser().parse_args(arguments)
    if options.seconds <= 0 or options.max_rows < 1:
        raise StartupError("--seconds and --max-rows: expected more than 0")
    if options.out.exists() and not options.force:
        raise StartupError(f"'{options.out}' is there already; --force replaces it")
    stored = validate(options.directory)
    works, refused = load_all(stored, options)
    if not works:
        raise StartupError("; ".join(f"{candidate}: {reason}" for candidate, reason in refused.items()))
    found = measure(works, options.max_rows, options.seconds)
    limit = None if options.latency_ms is None else options.latency_ms / 1e3
    choice = choose(found, options.goal, limit)
    lines = [*table(found), *(f"not measured: {candidate}: {reason}" for candidate, reason in refused.items())]
    print("\n".join([*lines, choice.why]))  # noqa: T201
    write(options.out, choice, [f"{options.directory.name}, {len(stored.manifest.members)} members", *lines])
    print(f"thalweg-serve {options.directory} --config {options.out}")  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thalweg-serve tune", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="ensemble directory")
    parser.add_argument("--for", dest="goal", choices=GOALS, default="throughput", help="what is to be best")
    parser.add_argument("--seconds", type=float, default=60.0, help="to measure, after everything is loaded")
    parser.add_argument("--out", type=Path, default=Path("serve.toml"), help="file for --config")
    parser.add_argument("--force", action="store_true", help="replace the file")
    parser.add_argument("--device", choices=device.DEVICES, default="auto")
    parser.add_argument("--max-rows", type=int, default=64, help="the most rows that a request may have")
    parser.add_argument("--latency-ms", type=float, help="that a batch may take at most")
    parser.add_argument("--memory-limit", type=int, metavar="MIB", help="of the process; above it, --memory compact")
    parser.add_argument(
        "--allow-precision",
        choices=PRECISIONS[1:],
        action="append",
        default=[],
        help="below fp32, if its answers to the probe rows are near enough",
    )
    return parser


def candidates(where: str, precisions: Sequence[str], cpus: int) -> list[Candidate]:
    """where: of `--device`. Those that cannot be had here are refused as they are loaded."""
    found = []
    if where != "cpu":
        found += [
            Candidate("cuda", precision=precision, cuda_graphs=graphs)
            for precision in precisions
            if precision != "bf16"
            for graphs in (False, True)
        ]
    if where != "cuda":
        found += [
            Candidate("cpu", engine, precision, threads)
            for engine in ("onnxruntime", "openvino")
            for precision in precisions
            if precision == "fp32" or engine == "openvino"
            for threads in sorted({cpus, max(cpus // 2, 1)}, reverse=True)
        ]
    return found


def load_all(stored: StoredEnsemble, options: argparse.Namespace) -> tuple[dict[Candidate, Work], dict[Candidate, str]]:
    """Those that run and pass the probe; the others, with the reason."""
    works: dict[Candidate, Work] = {}
    refused: dict[Candidate, str] = {}
    memory = Memory.FAST
    for candidate in candidates(options.device, ["fp32", *options.allow_precision], usable_cpus()):
        for mode in list(Memory)[list(Memory).index(memory) :]:
            chosen = Candidate(**asdict(candidate) | {"memory": mode})
            gc.collect()
            give_back()
            before = resident_bytes()
            try:
                work = load(stored, chosen, options.max_rows)
            except StartupError as error:
                refused[chosen] = str(error)
                break
            # What other candidates hold is not what a server would.
            held = BASE_BYTES + resident_bytes() - before
            if options.memory_limit is None or held <= options.memory_limit * MIB:
                works[chosen] = work
                break
            refused[chosen] = f"{held / MIB:.0f} MiB; --memory-limit is {options.memory_limit}"
            memory = Memory.COMPACT
            del work
    return works, refused


def load(stored: StoredEnsemble, candidate: Candidate, max_rows: int) -> Work:
    """Raises StartupError if it cannot be had here, or answers otherwise than it should."""
    compact = candidate.memory == Memory.COMPACT
    engine: Engine = device.choose(
        candidate.device,
        candidate.engine,
        candidate.precision,
        threads=candidate.threads,
        max_batch_rows=max_rows,
        compact=compact,
        cuda_graphs=candidate.cuda_graphs,
    )
    manifest = stored.manifest
    loaded = members.load(stored, engine, Memory(candidate.memory))
    executor = Executor(engine, loaded, len(manifest.class_labels))
    probe.check(stored, executor, engine, probe.PRECISION_TOLERANCE)
    inputs = np.zeros((max_rows, *manifest.input.shape), DATATYPES[manifest.input.datatype])
    executor.warm_up(inputs)
    batches: dict[int, np.ndarray] = {}

    def work(rows: int) -> object:
        # A copy each time: a GPU does not copy again what it has.
        batches[rows] = inputs[:rows].copy()
        return executor.run(batches[rows], np.ones((len(manifest.members), rows), np.bool_))

    return work


def measure(
    works: Mapping[Candidate, Work], max_rows: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[Candidate, Times]:
    """Medians of rounds in which each candidate runs each of its batches once: powers of two, and `max_rows`."""

    def timed(work: Work, rows: int) -> float:
        start = clock()
        work(rows)
        return clock() - start

    every = buckets.sizes(max_rows)
    longest = seconds / (TURNS * len(works))
    end = clock() + seconds
    sizes: dict[Candidate, list[int]] = {}
    for candidate, work in works.items():
        sizes[candidate] = []
        for rows in every:  # and so every size has been seen once
            took = timed(work, rows)
            if sizes[candidate] and took > longest:
                break
            sizes[candidate].append(rows)
    times: dict[Candidate, dict[int, list[float]]] = {
        candidate: {rows: [] for rows in sizes[candidate]} for candidate in works
    }
    order, rounds = list(works), 0
    while rounds < LEAST_ROUNDS or clock() < end:
        for candidate in order[rounds % len(order) :] + order[: rounds % len(order)]:
            for rows in sizes[candidate]:
                times[candidate][rows].append(timed(works[candidate], rows))
        rounds += 1
    return {
        candidate: {rows: statistics.median(each) for rows, each in by_rows.items()}
        for candidate, by_rows in times.items()
    }


def choose(found: Mapping[Candidate, Times], goal: str, latency_seconds: float | None = None) -> Choice:
    """The candidate with the highest rate, or the shortest time of one row; then the smallest batch that is enough.

    latency_seconds: that a batch may take at most. Raises StartupError if not even one row does.
    """
    within = {
        candidate: {rows: took for rows, took in times.items() if latency_seconds is None or took <= latency_seconds}
        for candidate, times in found.items()
    }
    within = {candidate: times for candidate, times in within.items() if times}
    if not within:
        fastest = min(took for times in found.values() for took in times.values())
        raise StartupError(f"--latency-ms: the fastest batch takes {1e3 * fastest:.2f} ms; expected that or more")

    def best_rate(candidate: Candidate) -> float:
        return max(rows / took for rows, took in within[candidate].items())

    def one_row(candidate: Candidate) -> float:
        return within[candidate].get(1, float("inf"))

    winner = max(within, key=best_rate) if goal == "throughput" else min(within, key=one_row)
    rate = best_rate(winner)
    rows = min(rows for rows, took in within[winner].items() if rows / took >= ENOUGH * rate)
    bound = "" if latency_seconds is None else f" in at most {1e3 * latency_seconds:g} ms"
    if goal == "throughput":
        merit = f"the highest rate, {rate:.0f} rows/s{bound}"
    else:
        merit = f"the shortest time of one row, {1e3 * one_row(winner):.2f} ms"
    why = f"{winner}: {merit}; {rows} rows are the fewest with {ENOUGH:.0%} of its best rate{bound}"
    return Choice(winner, rows, why)


def table(found: Mapping[Candidate, Times]) -> list[str]:
    every = sorted({rows for times in found.values() for rows in times})
    lines = [f"| ms a batch (rows/s) | {' | '.join(map(str, every))} |", f"|{'---|' * (1 + len(every))}"]
    for candidate, times in found.items():
        cells = [f"{1e3 * times[rows]:.2f} ({rows / times[rows]:.0f})" if rows in times else "–" for rows in every]
        lines.append(f"| {candidate} | {' | '.join(cells)} |")
    return lines


def write(path: Path, choice: Choice, about: Sequence[str]) -> None:
    """As `--config` reads it; appears whole. Raises StartupError."""
    comment = [f"thalweg-serve tune, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}", *about, choice.why]
    values = asdict(choice.candidate) | {"max_batch_rows": choice.max_batch_rows}
    lines = [f"# {line}" for line in comment] + [f"{name} = {_toml(value)}" for name, value in values.items()]
    staged = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        staged.write_text("\n".join(lines) + "\n", encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise StartupError(f"'{path}' cannot be written: {error.strerror}") from None


def _toml(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f'"{value}"'


def machine() -> str:
    """Processor, CPUs that may be used, versions of what computes."""
    try:
        name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        name = None
    versions = [f"Python {platform.python_version()}"]
    for package in ("onnxruntime", "onnxruntime-gpu", "openvino"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join([name[1] if name else platform.machine(), f"{usable_cpus()} CPUs", *versions])


BASE_BYTES = resident_bytes()  # of a process that has loaded nothing yet


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
