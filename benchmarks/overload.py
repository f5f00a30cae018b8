"""Ten times more requests than the server can answer: what becomes of those that it takes and of those it refuses.

    python -m benchmarks.overload [--directory ENSEMBLE] [--record FOLDER]

Three measurements on one server: what it can answer (closed loop), its latency at half of that, and at ten times that
(both open loop: requests leave by the clock, whether or not answers have come, and latency counts from the moment by
the clock). This process is the client; the server has its own. Without --directory: eight convolutional networks of
random weights, since the time of a network is that of its shapes.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.record import write_record
from benchmarks.serve import client
from benchmarks.serve.client import Outcome
from benchmarks.serve.peers import Body
from protos import manifest_file
from protos import open_inference_grpc_pb2 as oip
from protos.ensemble_pb2 import CLASSIFICATION, Endpoint, EnsembleManifest, Input, Member, Term
from protos.graph import DATATYPES
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests.server_process import ServerProcess

INFER = "/inference.GRPCInferenceService/ModelInfer"
CONNECTIONS = 8
CLOSED_LOOP_CALLS = 16
TIMES = 10
MEMBERS, LAYERS, CHANNELS, SHAPE, CLASSES = 8, 9, 16, (3, 32, 32), 10


def write_convolutional(directory: Path) -> None:
    """Eight networks of random weights, about as much work as PreResNet-20: nine 3 × 3 convolutions on 32 × 32."""
    draw = np.random.default_rng(0)
    shapes = {f"{i}.weight": (CHANNELS, CHANNELS if i else SHAPE[0], 3, 3) for i in range(LAYERS)}
    shapes["last.weight"] = (CLASSES, CHANNELS)
    sets = {
        f"w{m}": {
            name: (draw.normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
            for name, shape in shapes.items()
        }
        for m in range(MEMBERS)
    }
    nodes, value = [], "input"
    for i in range(LAYERS):
        nodes.append(helper.make_node("Conv", [value, f"{i}.weight"], [f"{i}.conv"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{i}.conv"], [value := f"{i}.relu"]))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "last.weight"], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes,
        "convolutional",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(tensor, name) for name, tensor in sets["w0"].items()],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    members = [
        Member(id=f"m{m}", endpoint=Endpoint(run=m, epoch=1), terms=[Term(weight_set=f"w{m}", coefficient=1.0)],
               temperature=1.0)
        for m in range(MEMBERS)
    ]  # fmt: skip
    manifest = EnsembleManifest(
        name="convolutional",
        version="1",
        task=CLASSIFICATION,
        input=Input(name="input", datatype="FP32", shape=SHAPE),
        class_labels=[str(c) for c in range(CLASSES)],
        members=members,
        temperature=1.0,
    )
    manifest_file.write(directory, manifest, model.SerializeToString(), sets, {})


def served_name(address: str) -> str:
    with grpc.insecure_channel(address) as channel:
        index = GRPCInferenceServiceStub(channel).ModelStatistics(oip.ModelStatisticsRequest(), timeout=30)
    return index.model_stats[0].name


def request(address: str, name: str, rows: int) -> Body:
    """Random rows for the model, as bytes: the client must not be what is measured."""
    with grpc.insecure_channel(address) as channel:
        metadata = GRPCInferenceServiceStub(channel).ModelMetadata(oip.ModelMetadataRequest(name=name), timeout=30)
    (tensor,) = metadata.inputs
    shape = [rows, *tensor.shape[1:]]
    values = np.random.default_rng(0).uniform(0, 100, size=shape).astype(DATATYPES[tensor.datatype])
    message = oip.ModelInferRequest(model_name=name, raw_input_contents=[values.tobytes()])
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    return Body(INFER, "application/grpc", message.SerializeToString())


async def capacity_of(call: client.Call, body: Body, seconds: float) -> float:
    """Requests answered in a second, with a few callers that wait for each answer."""
    count, rate = CLOSED_LOOP_CALLS, 0.0
    for duration in (0.0, min(seconds, 2.0), seconds):  # each says how many calls the next one takes
        count = max(count, int(rate * duration))
        start = time.perf_counter()
        outcome = await client.closed_loop(call, body, CLOSED_LOOP_CALLS, count)
        rate = len(outcome.answered) / (time.perf_counter() - start)
    return rate


async def measure(address: str, body: Body, seconds: float) -> tuple[float, Outcome, Outcome]:
    async with client.connect(address, "oip-grpc", CONNECTIONS) as call:
        capacity = await capacity_of(call, body, seconds)
        half = await client.open_loop(call, body, client.evenly(capacity / 2, seconds))
        over = await client.open_loop(call, body, client.evenly(capacity * TIMES, seconds))
    return capacity, half, over


def numbers(outcome: Outcome) -> dict[str, Any]:
    """For a record."""
    return {name: getattr(outcome, name) for name in ("answered", "failed", "codes", "late")}


def ms(seconds: Sequence[float], quantile: float) -> str:
    return f"{1000 * float(np.quantile(seconds, quantile)):.1f}" if len(seconds) else "–"


def table(capacity: float, rows: int, bound_s: float, half: Outcome, over: Outcome) -> str:
    lines = [
        f"Capacity: {capacity:.1f} requests of {rows} rows a second. What is accepted should take at most "
        f"{1000 * bound_s:.0f} ms: the running batch, a full queue, and its own batch.",
        "",
        "| load | outcome | requests | median ms | 99 % ms |",
        "|---|---|---|---|---|",
        f"| half | answered | {len(half.answered)} | {ms(half.answered, 0.5)} | {ms(half.answered, 0.99)} |",
    ]
    middle = len(over.answered) // 2
    for name, values in (
        ("answered", over.answered),
        ("answered, first half", over.answered[:middle]),
        ("answered, second half", over.answered[middle:]),
        ("refused", over.failed),
    ):
        lines.append(f"| ten times | {name} | {len(values)} | {ms(values, 0.5)} | {ms(values, 0.99)} |")
    codes = ", ".join(f"{name} {count}" for name, count in sorted(over.codes.items()))
    lines += [
        "",
        f"Codes at ten times: {codes}. The client sent {ms(over.late, 0.5)} ms late, 99 %: {ms(over.late, 0.99)} ms.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--directory", type=Path, help="of an ensemble; default: networks of random weights")
    parser.add_argument("--rows", type=int, default=8, help="of a request")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--max-queue-rows", type=int, default=64, help="of the server: bounds the wait")
    parser.add_argument("--max-batch-rows", type=int, default=16, help="of the server")
    parser.add_argument("--record", type=Path, help="folder for record.json and table.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = arguments.directory or Path(folder) / "convolutional"
        if arguments.directory is None:
            write_convolutional(directory)
        queue, batch = str(arguments.max_queue_rows), str(arguments.max_batch_rows)
        with ServerProcess(directory, "--max-queue-rows", queue, "--max-batch-rows", batch) as server:
            body = request(server.grpc, served_name(server.grpc), arguments.rows)
            capacity, half, over = asyncio.run(measure(server.grpc, body, arguments.seconds))
    # What is accepted waits for the batch that runs and a full queue at most, and then runs itself.
    bound_s = (arguments.max_queue_rows + 2 * arguments.max_batch_rows) / (capacity * arguments.rows)
    text = table(capacity, arguments.rows, bound_s, half, over)
    if arguments.record:
        settings = {name: str(value) for name, value in vars(arguments).items()}
        behind = {"settings": settings, "capacity": capacity, "half": numbers(half), "ten_times": numbers(over)}
        write_record(arguments.record, "benchmarks.overload", text, **behind)
    print(text)


if __name__ == "__main__":
    main()
