"""Latency and throughput of the engines, in process: a whole ensemble on a batch, no network and no queue in between.

All contenders live in one process and take turns, another one first in every round, so that a slow moment of the
machine falls on all; ratios are to ONNX Runtime in fp32, round by round. A turn begins with a run that is not timed, or
each would find the caches full of the others' weights, and lasts for STRETCH_S. CPU time is that of the whole process.
(Sessions with pools of threads of their own are not among them: their threads spin into the next one's turn.) A
contender that cannot be had here is named with the reason. Batches that are measured already under --out are not
measured again. Prints a table last, and writes it with every time behind it to --record.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import compact
from benchmarks.record import write_record
from protos.stored_ensemble import StoredEnsemble
from protos.validate import validate
from serving.errors import StartupError
from serving.networks import members
from serving.networks.cpu import usable_cpus
from serving.networks.curve import CurveGrid
from serving.networks.device import choose
from serving.networks.engines.onnx_cpu import CPU, open_session, session_options
from serving.networks.executor import Executor
from serving.networks.members import Memory
from trainer.standalone import ensemble_model

BASELINE = "ONNX Runtime, fp32"
# Settings of `serving.networks.device.choose`; `compact` is the ensemble's as well.
CONTENDERS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        BASELINE: {"engine": "onnxruntime"},
        "ONNX Runtime, compact": {"engine": "onnxruntime", "compact": True},
        "OpenVINO, fp32": {"engine": "openvino"},
        "OpenVINO, bf16": {"engine": "openvino", "precision": "bf16"},
    },
    "cuda": {
        BASELINE: {"engine": "onnxruntime"},
        "ONNX Runtime, CUDA graphs": {"engine": "onnxruntime", "cuda_graphs": True},
        "ONNX Runtime, fp16": {"engine": "onnxruntime", "precision": "fp16"},
        "ONNX Runtime, fp16, CUDA graphs": {"engine": "onnxruntime", "precision": "fp16", "cuda_graphs": True},
        "ONNX Runtime, compact": {"engine": "onnxruntime", "compact": True},
        "TensorRT, fp16": {"engine": "tensorrt", "precision": "fp16"},
    },
}
CURVE = "policy curve"
FUSED = "ONNX Runtime, one graph, a caller a thread"
STRETCH_S = 0.05

# Rows to logits; the time counts.
Work = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Taken:
    """Seconds a run, a value for each round."""

    wall: list[float]
    cpu: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=sorted(CONTENDERS), default="cpu")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each batch size")
    parser.add_argument("--out", type=Path, default=Path("runs/engines"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    network = f"preresnet-{options.depth}-x{options.width}"
    directory = options.out / f"{network}-{options.members}"
    if not directory.exists():
        one = options.out / f"{network}-1"
        compact.write(one, directory, options.depth, options.width, options.members)
    works: dict[str, Work] | None = None
    missing: dict[str, str] = {}
    found: dict[int, dict[str, Taken]] = {}
    for batch in options.batches:
        path = options.out / f"{options.device}-{directory.name}-batch-{batch}.json"
        if not path.exists():
            if works is None:
                works = contenders(validate(directory), options.device, max(options.batches), missing)
            rows = np.random.default_rng(batch).integers(0, 256, (batch, 3, 32, 32), dtype=np.uint8)
            taken = take_turns(works, rows, options.seconds)
            seconds = {name: asdict(times) for name, times in taken.items()}
            path.write_text(json.dumps({"missing": missing, "seconds": seconds}) + "\n")
        stored = json.loads(path.read_text())
        found[batch] = {name: Taken(**times) for name, times in stored["seconds"].items()}
        missing = missing | stored["missing"]
        print(f"batch {batch}: {len(found[batch][BASELINE].wall)} rounds", flush=True)

    lines = table(f"{options.members} × {network}, {options.device}", found)
    lines += ["", *(f"{name}: not here. {reason}" for name, reason in missing.items())]
    print("\n".join(lines))
    if options.record:
        seconds = {batch: {name: asdict(times) for name, times in row.items()} for batch, row in found.items()}
        write_record(options.record, "benchmarks.engines", "\n".join(lines), missing=missing, seconds=seconds)
    return 0


def contenders(stored: StoredEnsemble, device: str, max_rows: int, missing: dict[str, str]) -> dict[str, Work]:
    """Loaded and warmed; `missing` gets those that cannot be had, with the reason."""
    works: dict[str, Work] = {}
    example = np.zeros((max_rows, 3, 32, 32), np.uint8)
    for name, settings in CONTENDERS[device].items():
        try:
            engine = choose(device, threads=usable_cpus(), max_batch_rows=max_rows, **settings)
            memory = Memory.COMPACT if settings.get("compact") else Memory.FAST
            curve = CurveGrid(stored)
            loaded = members.load(stored, engine, memory, curve if name == BASELINE else None)
        except StartupError as error:
            missing[name] = str(error)
            continue
        executor = Executor(engine, loaded, len(stored.manifest.class_labels))
        executor.warm_up(example)
        works[name] = whole_ensemble(executor, len(loaded.members))
        if loaded.groups:
            works[f"{name}, a graph a member"] = whole_ensemble(executor, len(loaded.members), fused=False)
        if name == BASELINE:
            works[CURVE] = a_point_a_row(executor, curve)
    if device == "cpu":
        works[FUSED] = one_graph(stored, usable_cpus())
    return works


def whole_ensemble(executor: Executor, count: int, fused: bool = True) -> Work:
    return lambda rows: executor.run(rows, np.ones((count, len(rows)), np.bool_), fused)


def a_point_a_row(executor: Executor, curve: CurveGrid) -> Work:
    draw = np.random.default_rng(0)
    return lambda rows: executor.run_points(rows, [curve.at(t) for t in draw.random(len(rows)).tolist()])


def one_graph(stored: StoredEnsemble, callers: int) -> Work:
    """What a user without our server would run: `export --standalone`'s file, and a part of the rows a caller."""
    session = open_session(ensemble_model(stored).SerializeToString(), {}, session_options(), [CPU])
    pool = ThreadPoolExecutor(callers)

    def run(rows: np.ndarray) -> Sequence[Any]:
        parts = np.array_split(rows, min(callers, len(rows)))
        return list(pool.map(lambda part: session.run(["probs"], {"input": part}), parts))

    return run


def take_turns(works: Mapping[str, Work], rows: np.ndarray, seconds: float, least: int = 5) -> dict[str, Taken]:
    """The first round only warms up."""
    names = list(works)
    taken = {name: Taken([], []) for name in names}
    end = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < end or turn <= least:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            works[name](rows)
            runs = max(1, round(STRETCH_S / (time.perf_counter() - start)))
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(runs):
                works[name](rows)
            cpu, wall = time.process_time() - cpu_start, time.perf_counter() - start
            if turn:
                taken[name].wall.append(wall / runs)
                taken[name].cpu.append(cpu / runs)
        turn += 1
    return taken


def table(title: str, found: Mapping[int, Mapping[str, Taken]]) -> list[str]:
    """Medians; of ratios, quartiles as well."""
    lines = [
        f"| {title} | batch | ms, median | 95th percentile | rows/s | CPU ms a row | time over {BASELINE} | rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for batch, seconds in found.items():
        for name, times in seconds.items():
            middle, ratios = statistics.median(times.wall), np.divide(times.wall, seconds[BASELINE].wall)
            low, ratio, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            cells = [
                name,
                str(batch),
                f"{1e3 * middle:.2f}",
                f"{1e3 * np.quantile(times.wall, 0.95):.2f}",
                f"{batch / middle:.0f}",
                f"{1e3 * statistics.median(times.cpu) / batch:.2f}",
                "" if name == BASELINE else f"{ratio:.2f} ({low:.2f}–{high:.2f})",
                str(len(times.wall)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
