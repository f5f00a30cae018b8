"""What `--memory compact` holds: a curve of one bend through PreResNets with fifty members, in units of one network.

Each row is a process of its own that loads an ensemble as the server does, answers a few rows, and reports how much
it has grown, and how large it is: imports and allocators alone are the floor. Weights and statistics are random: their
values change no size. Prints a table last, and writes it to --record.
"""

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from protos.stored_ensemble import Probe, StoredEnsemble

ROWS, REQUESTS = 1, 2
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/compact"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    parser.add_argument("--measure", nargs=2, metavar=("DIRECTORY", "MEMORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1], options.threads)))
        return 0

    network = f"preresnet-{options.depth}-x{options.width}"
    one, many = (options.out / f"{network}-{members}" for members in (1, options.members))
    if not many.exists():
        write(one, many, options.depth, options.width, options.members)
    found = {
        label: child(directory, memory, options.threads)
        for label, directory, memory in (
            ("one network", one, "fast"),
            (f"{options.members} members, compact", many, "compact"),
            (f"{options.members} members, fast", many, "fast"),
        )
    }
    lines = table(network, found)
    print("\n".join(lines))
    if options.record:
        from benchmarks.record import write_record

        rows = {label: {name: row[name] for name in row if name != "logits"} for label, row in found.items()}
        write_record(options.record, "benchmarks.compact", "\n".join(lines), rows=rows)
    return 0


def write(one: Path, many: Path, depth: int, width: int, members: int, probe_rows: int = 0) -> None:
    """Both directories, the larger last: it is there only if both are."""
    import torch

    from protos import manifest_file
    from protos.curve import bezier
    from protos.ensemble_pb2 import BEZIER, CLASSIFICATION, CurvePoint, EnsembleManifest, Input, Member, Term
    from trainer import export
    from trainer.models.preresnet import preresnet
    from trainer.network import Network, Normalise

    torch.manual_seed(0)
    network = Network(lambda: preresnet(10, depth=depth, width=width), Normalise([125.0] * 3, [65.0] * 3, input_axes=4))
    graph = export.graph(network, torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    weight_sets = {f"w{k}": export.weight_tensors(network, graph, network.initial_weights()) for k in range(3)}

    def statistics() -> Any:
        drawn = {name: tensor + 0.5 * torch.rand(tensor.shape) for name, tensor in network.initial_statistics().items()}
        return export.statistic_tensors(graph, drawn)

    for directory, ts in ((one, [0.0]), (many, np.linspace(0, 1, members).tolist())):
        manifest = EnsembleManifest(
            name="curve",
            version="1",
            task=CLASSIFICATION,
            input=Input(name="input", datatype="UINT8", shape=[3, 32, 32]),
            class_labels=[str(c) for c in range(10)],
            temperature=1.0,
        )
        for i, t in enumerate(ts):
            member = Member(id=f"m{i}", statistics=f"s{i}", temperature=1.0)
            if len(ts) == 1:
                member.terms.add(weight_set="w0", coefficient=1.0)
            else:
                member.curve_point.CopyFrom(CurvePoint(curve=BEZIER, bends=1, t=t))
                member.terms.extend(Term(weight_set=f"w{k}", coefficient=c) for k, c in enumerate(bezier(1, t)))
            manifest.members.append(member)
        kept = {name: tensors for name, tensors in weight_sets.items() if len(ts) > 1 or name == "w0"}
        data, drawn = graph.model.SerializeToString(), {f"s{i}": statistics() for i in range(len(ts))}
        stored = manifest_file.write(directory, manifest, data, kept, drawn)
        if probe_rows:
            manifest_file.write(directory, manifest, data, kept, drawn, probe=probe_of(stored, probe_rows))


def probe_of(stored: "StoredEnsemble", rows: int) -> "Probe":
    """Each member's answers as a model of its own."""
    import onnxruntime

    from protos.stored_ensemble import Probe

    inputs = np.random.default_rng(0).integers(0, 256, (rows, *stored.manifest.input.shape), dtype=np.uint8)
    models = (stored.model(member).SerializeToString() for member in stored.manifest.members)
    sessions = (onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]) for model in models)
    feeds = {stored.manifest.input.name: inputs}
    return Probe(inputs, np.stack([session.run(["logits"], feeds)[0] for session in sessions]))


def child(directory: Path, memory: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.compact", "--measure", str(directory), memory]
    done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    print(f"{directory.name} {memory}: {done.stdout.strip()[:120]} …", flush=True)
    return dict(json.loads(done.stdout))


def measure(directory: Path, memory: str, threads: int) -> dict[str, Any]:
    """Growth of this process in bytes: when the ensemble is loaded, and after requests; and the logits of some rows."""
    import tempfile

    from protos.validate import validate
    from serving.networks import members
    from serving.networks.device import choose
    from serving.networks.executor import Executor
    from serving.networks.members import Memory
    from serving.networks.memory import give_back, resident_bytes
    from tests import tiny_ensemble

    engine = choose("cpu", threads=threads, max_batch_rows=ROWS, compact=memory == "compact")
    inputs = np.random.default_rng(0).integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:  # libraries and allocators have done their first steps after that
        tiny = tiny_ensemble.write(Path(folder) / "tiny")
        first = Executor(engine, members.load(tiny, engine), 3)
        first.run(np.zeros((ROWS, 4), np.float32), np.ones((4, ROWS), bool))
    give_back()
    before = resident_bytes()
    stored = validate(directory)
    count = len(stored.manifest.members)
    weights = sum(tensor.nbytes for tensor in stored.weight_sets["w0"].values())
    statistics = sum(tensor.nbytes for tensors in stored.statistics.values() for tensor in tensors.values())
    executor = Executor(engine, members.load(stored, engine, Memory(memory)), len(stored.manifest.class_labels))
    del stored
    gc.collect()
    give_back()
    loaded = resident_bytes()
    for _ in range(REQUESTS):
        logits = executor.run(inputs, np.ones((count, ROWS), bool))
    give_back()
    return {
        "floor": before,
        "process": resident_bytes(),
        "weights": weights,
        "statistics": statistics,
        "loaded": loaded - before,
        "after_requests": resident_bytes() - before,
        "logits": logits.astype(float).ravel().tolist(),
    }


def table(network: str, found: dict[str, dict[str, Any]]) -> list[str]:
    one, compact, fast = found.values()
    scale = np.abs(fast["logits"]).max()
    difference = np.abs(np.subtract(compact["logits"], fast["logits"])).max()
    lines = [
        f"| {network}, {one['weights'] / MIB:.2f} MiB of weights | grown when loaded, MiB | less statistics, networks "
        f"| after {REQUESTS} requests, MiB | less statistics, networks | whole process, MiB | of which the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in found.items():
        cells = [label]
        for moment in ("loaded", "after_requests"):
            cells += [f"{row[moment] / MIB:.1f}", f"{(row[moment] - row['statistics']) / row['weights']:.2f}"]
        cells += [f"{row[name] / MIB:.1f}" for name in ("process", "floor")]
        lines.append(f"| {' | '.join(cells)} |")
    growth, whole = (fast[name] / compact[name] for name in ("after_requests", "process"))
    lines += ["", f"Compact is 1/{growth:.1f} of fast in growth, 1/{whole:.1f} in the whole process."]
    lines += ["", f"Largest difference of logits, compact from fast: {difference:.1e}, of logits up to {scale:.1f}."]
    return lines


if __name__ == "__main__":
    sys.exit(main())
