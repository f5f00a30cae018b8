"""What a GPU gives: three measurements, each kept under --out and not repeated, so that a short lease can be used up.

throughput   8 × ResNet-50 in fp16 on pictures of 224²: our engine against the best of the same networks in process
latency      one row through 8 PreResNet-20 against one row through one of them
requests     one picture a request through a real server, from clients in processes of their own

    python -m benchmarks.gpu --only throughput --out runs/gpu --record benchmarks/records/X

Contenders take turns. Every contender's logits are compared with ours. `--device cpu --small` runs the same code
with tiny networks, in fp32 and without graphs: whether it works, not how fast it is. Prints a table last.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from torch import nn

from benchmarks.record import write_record
from protos import manifest_file
from protos.ensemble_pb2 import CLASSIFICATION, EnsembleManifest, Input, Member
from protos.stored_ensemble import StoredEnsemble
from protos.validate import validate
from serving.client.clients import AsyncClient
from serving.errors import StartupError
from serving.networks import members
from serving.networks.device import choose
from serving.networks.engines.half import to_float16
from serving.networks.executor import Executor
from tests.server_process import ServerProcess
from trainer import export
from trainer.models.preresnet import preresnet
from trainer.network import Network, Normalise

TOLERANCE = 0.05  # of logits in fp16, in units of the largest
LEAST_ROUNDS = 5
Work = Callable[[np.ndarray], np.ndarray]  # rows [B, 3, H, W] to logits [M, B, C]


@dataclass(frozen=True)
class Size:
    factory: Callable[[], nn.Module]
    pixels: int
    members: int
    rows: int
    clients: int
    processes: int


FULL = Size(lambda: torchvision.models.resnet50(num_classes=1000), 224, 8, 64, 64, 8)
SMALL = Size(lambda: torchvision.models.resnet18(num_classes=10), 32, 2, 4, 4, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=sorted(MEASUREMENTS), action="append")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, measurement in MEASUREMENTS.items():
        file = options.out / f"{name}-{options.device}{'-small' if options.small else ''}.json"
        if not file.exists() and name in (options.only or MEASUREMENTS):
            file.write_text(json.dumps(measurement(options, SMALL if options.small else FULL)))
        if file.exists():
            found[name] = json.loads(file.read_text())
    lines = table(found)
    print("\n".join(lines))
    if options.record:
        write_record(options.record, "benchmarks.gpu", "\n".join(lines), found=found)
    return 0


def throughput(options: argparse.Namespace, size: Size) -> list[dict[str, Any]]:
    stored = ensemble(options.out, "resnet", size.factory, size.pixels, size.members)
    rows = pictures(size.rows, size.pixels)
    works: dict[str, Work] = {}
    missing: list[dict[str, Any]] = []
    for name, settings in contenders(options.device).items():
        try:
            works[name] = ours(stored, options.device, size.rows, **settings)
        except StartupError as error:
            missing.append({"what": name, "missing": str(error)})
    works["torch"] = with_torch(stored, size.factory, options.device)
    works["sessions of ONNX Runtime"] = with_sessions(stored, options.device, rows)
    return [*turns(works, rows, options.seconds), *missing]


def latency(options: argparse.Namespace, size: Size) -> list[dict[str, Any]]:
    """Each by itself, since it is compared with itself alone: answers are those of other networks."""
    settings = {"cuda_graphs": options.device == "cuda"}
    found = []
    for count in (1, 8):
        stored = ensemble(options.out, "preresnet", lambda: preresnet(10, depth=20), 32, count)
        work = ours(stored, options.device, 1, **settings)
        found += turns({f"{count} PreResNet-20, one row": work}, pictures(1, 32), options.seconds / 2)
    return found


def requests(options: argparse.Namespace, size: Size) -> list[dict[str, Any]]:
    directory = options.out / "preresnet-8"
    ensemble(options.out, "preresnet", lambda: preresnet(10, depth=20), 32, 8)
    arguments = ["--device", options.device, *(["--cuda-graphs"] if options.device == "cuda" else [])]
    with ServerProcess(directory, *arguments) as server:
        context = multiprocessing.get_context("spawn")
        share = [(server.grpc, size.clients // size.processes, options.seconds)] * size.processes
        with context.Pool(size.processes) as pool:
            counts = pool.starmap(ask, share)
    return [{"what": f"one picture a request, {size.clients} clients", "rate": sum(counts)}]


def ask(target: str, clients: int, seconds: float) -> float:
    """Answers a second, each client a request after the other; the first second only warms up."""

    async def client() -> int:
        async with AsyncClient(target, "preresnet") as caller:
            picture, start, answered = pictures(1, 32), time.perf_counter(), 0
            while (passed := time.perf_counter() - start) < 1.0 + seconds:
                await caller.predict(picture)
                answered += passed >= 1.0
            return answered

    async def together() -> int:
        return sum(await asyncio.gather(*(client() for _ in range(clients))))

    return asyncio.run(together()) / seconds


MEASUREMENTS = {"throughput": throughput, "latency": latency, "requests": requests}


def contenders(device: str) -> dict[str, dict[str, Any]]:
    """Settings of `serving.networks.device.choose`."""
    if device == "cpu":
        return {"ours": {}}
    return {
        "ours": {"precision": "fp16"},
        "ours, CUDA graphs": {"precision": "fp16", "cuda_graphs": True},
        "ours, TensorRT": {"precision": "fp16", "engine": "tensorrt"},
    }


def ensemble(out: Path, name: str, factory: Callable[[], nn.Module], pixels: int, count: int) -> StoredEnsemble:
    """Freshly initialised networks: the time of a network is that of its shapes."""
    directory = out / f"{name}-{count}"
    if directory.exists():
        return validate(directory)
    torch.manual_seed(0)
    network = Network(factory, Normalise([125.0] * 3, [65.0] * 3, input_axes=4))
    graph = export.graph(network, torch.zeros(4, 3, pixels, pixels, dtype=torch.uint8))
    classes = graph.outputs["logits"].shape[-1]
    manifest = EnsembleManifest(
        name=name,
        version="1",
        task=CLASSIFICATION,
        input=Input(name="input", datatype="UINT8", shape=[3, pixels, pixels]),
        class_labels=[str(c) for c in range(classes)],
        temperature=1.0,
    )
    weight_sets = {}
    for i in range(count):
        weight_sets[f"w{i}"] = export.weight_tensors(network, graph, network.initial_weights())
        member = Member(id=f"m{i}", statistics="s", temperature=1.0)
        member.terms.add(weight_set=f"w{i}", coefficient=1.0)
        manifest.members.append(member)
    statistics_ = {"s": export.statistic_tensors(graph, network.initial_statistics())}
    return manifest_file.write(directory, manifest, graph.model.SerializeToString(), weight_sets, statistics_)


def pictures(rows: int, pixels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 3, pixels, pixels), dtype=np.uint8)


def ours(stored: StoredEnsemble, device: str, rows: int, **settings: Any) -> Work:
    engine = choose(device, threads=2, max_batch_rows=rows, **settings)
    count = len(stored.manifest.members)
    executor = Executor(engine, members.load(stored, engine), len(stored.manifest.class_labels))
    # A copy each time: a GPU does not copy again what it has.
    return lambda inputs: executor.run(inputs.copy(), np.ones((count, len(inputs)), np.bool_))


def with_torch(stored: StoredEnsemble, factory: Callable[[], nn.Module], device: str) -> Work:
    """Compiled on a GPU, in fp16 and channels last."""
    on_gpu = device == "cuda"
    kind = torch.float16 if on_gpu else torch.float32
    modules = []
    for member in stored.manifest.members:
        module = factory().eval()
        tensors = {name: torch.from_numpy(np.array(tensor)) for name, tensor in stored.tensors(member).items()}
        module.load_state_dict(tensors, strict=False)
        module = module.to(device, kind, memory_format=torch.channels_last)
        modules.append(torch.compile(module, mode="max-autotune") if on_gpu else module)

    @torch.inference_mode()
    def run(inputs: np.ndarray) -> np.ndarray:
        rows = (torch.from_numpy(inputs).to(device).to(kind) - 125.0) / 65.0
        rows = rows.contiguous(memory_format=torch.channels_last)
        # Copied before the next replays: compiled graphs share their outputs' memory.
        return torch.stack([module(rows).float().clone() for module in modules]).cpu().numpy()

    return run


def with_sessions(stored: StoredEnsemble, device: str, rows: np.ndarray) -> Work:
    """A session a member, with buffers on the device; CUDA graphs on a GPU."""
    on_gpu = device == "cuda"
    provider: Any = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"}) if on_gpu else "CPUExecutionProvider"
    taken = onnxruntime.OrtValue.ortvalue_from_numpy(rows, device)
    bound = []
    for member in stored.manifest.members:
        model = to_float16(stored.model(member)) if on_gpu else stored.model(member)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[provider])
        shape = [len(rows), len(stored.manifest.class_labels)]
        logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device)
        binding = session.io_binding()
        binding.bind_ortvalue_input("input", taken)
        binding.bind_ortvalue_output("logits", logits)
        bound.append((session, binding, logits))

    def run(inputs: np.ndarray) -> np.ndarray:
        taken.update_inplace(inputs)
        for session, binding, _ in bound:
            session.run_with_iobinding(binding)
        return np.stack([logits.numpy() for *_, logits in bound])

    return run


def turns(works: dict[str, Work], rows: np.ndarray, seconds: float) -> list[dict[str, Any]]:
    """Median seconds of each. Raises RuntimeError if one answers otherwise than the first."""
    answers = {}
    for name, work in works.items():
        for _ in range(3):  # compiles, captures, replays
            answers[name] = work(rows)
    first = next(iter(answers.values()))
    off = {name: float(np.abs(logits - first).max() / np.abs(first).max()) for name, logits in answers.items()}
    if not all(value <= TOLERANCE for value in off.values()):  # nor is what is no number
        raise RuntimeError(f"logits are off by {off} of the largest; expected {TOLERANCE} at most")
    times: dict[str, list[float]] = {name: [] for name in works}
    names, end, turn = list(works), time.perf_counter() + seconds, 0
    while turn < LEAST_ROUNDS or time.perf_counter() < end:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            works[name](rows)
            times[name].append(time.perf_counter() - start)
        turn += 1
    middle = {name: statistics.median(each) for name, each in times.items()}
    return [
        {"what": name, "seconds": middle[name], "rate": len(rows) / middle[name], "rounds": turn, "off": off[name]}
        for name in works
    ]


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = ["| measurement | what | ms | rows/s | logits off by |", "|---|---|---|---|---|"]
    for name, rows in found.items():
        for row in rows:
            if "missing" in row:
                cells = [name, row["what"], f"missing: {row['missing']}", "", ""]
            else:
                ms = f"{1e3 * row['seconds']:.2f}" if "seconds" in row else ""
                cells = [name, row["what"], ms, f"{row['rate']:.0f}", f"{row['off']:.1g}" if "off" in row else ""]
            lines.append(f"| {' | '.join(cells)} |")
    rates = {row["what"]: row["rate"] for row in found.get("throughput", []) if "rate" in row}
    if rates:
        best = {mine: max(r for what, r in rates.items() if what.startswith("ours") is mine) for mine in (True, False)}
        lines += ["", f"Our best is {best[True] / best[False]:.2f} of the in-process peak."]
    if "latency" in found:
        one, eight = (row["seconds"] for row in found["latency"])
        lines += ["", f"Eight members take {eight / one:.2f} times as long as one."]
    return lines


if __name__ == "__main__":
    sys.exit(main())
