"""While each attack on the wire runs, a probe asks for health and a prediction every 50 ms: none of them fails."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests.hostile import wire
from tests.hostile.probe import LEAST_ROUNDS, Probe
from tests.server_process import ServerProcess

MIB = 2**20


@pytest.fixture(scope="module")
def server(tiny_directory: Path) -> Iterator[ServerProcess]:
    # What an attack makes gRPC's core write would fill the pipe that nobody empties.
    with ServerProcess(tiny_directory, environment={"GRPC_VERBOSITY": "NONE"}) as server:
        yield server


def withstands(
    server: ServerProcess, name: str, target: str, attack: Callable[[str], Any], holds: Callable[[Any], bool]
) -> None:
    """Attacks an address of the server. holds: what must be true of what the attack saw."""
    before = resident_bytes(server)
    with Probe(server.grpc) as probe:
        seen = attack(target)
    assert probe.report.failures == []
    assert len(probe.report.seconds) >= LEAST_ROUNDS
    assert holds(seen), seen
    assert resident_bytes(server) - before < 64 * MIB
    print(f"{name}: {len(probe.report.seconds)} probes, the slowest {max(probe.report.seconds):.3f} s, saw {seen}")


def resident_bytes(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096


def infer_message(rows: int) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(16 * rows)])
    request.inputs.add(name="input", datatype="FP32", shape=[rows, 4])
    return request


def many_calls(address: str) -> Counter[str]:
    """120 calls at once, each as large as leaves room in the queue for small ones beside them."""

    async def call(stub: Any) -> str:
        try:
            await stub.ModelInfer(infer_message(60), timeout=wire.LONGEST_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    async def all_calls() -> Counter[str]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            return Counter(await asyncio.gather(*(call(stub) for _ in range(120))))

    return asyncio.run(all_calls())


def never_read(address: str) -> None:
    wire.answers_never_read(address, infer_message(60).SerializeToString())


def is_true(value: object) -> bool:
    return value is True


ATTACKS: dict[str, tuple[Callable[[str], object], Callable[[Any], bool]]] = {
    # name: the attack, and what must be true of what it saw
    "half-open streams": (wire.half_open_streams, lambda opened: opened == 600),
    "silent sockets": (wire.silent_sockets, lambda closed: closed == 300),
    "pings": (wire.ping_flood, is_true),
    "rapid reset": (wire.rapid_reset, lambda sent: sent >= 20_000),
    "endless headers": (wire.continuation_flood, is_true),
    "settings": (wire.settings_flood, lambda sent: sent > 0),
    "garbage": (wire.garbage, lambda closed: closed == 80),
    "large headers": (
        wire.large_headers,
        lambda codes: codes == [{grpc.StatusCode.NOT_FOUND}, {grpc.StatusCode.RESOURCE_EXHAUSTED}],
    ),
    "large messages": (wire.large_message, lambda codes: codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}),
    "gzip bomb": (wire.gzip_bomb, lambda status: status == "8"),  # RESOURCE_EXHAUSTED
    "slow messages": (wire.slow_message, lambda nothing: True),
    "answers never read": (never_read, lambda nothing: True),
    "120 calls": (many_calls, lambda codes: set(codes) <= {"OK", "RESOURCE_EXHAUSTED"} and codes.total() == 120),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_probe_fails_under_attack(server: ServerProcess, name: str) -> None:
    withstands(server, name, server.grpc, *ATTACKS[name])


def test_after_all_of_them_a_connection_is_as_good_as_new(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        response = GRPCInferenceServiceStub(channel).ModelInfer(infer_message(1), timeout=30)
    assert np.frombuffer(response.raw_output_contents[0], "<f4").sum() == pytest.approx(1.0)
    code, errors = server.stop()
    assert code == 0
    assert "Traceback" not in errors
