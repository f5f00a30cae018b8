"""Cancellation, deadlines and overload as a client sees them: real gRPC, an ensemble that waits where the test says."""

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from protos.validate import validate
from serving import ensemble as ensembles
from serving.batcher import Batcher, Work
from serving.decoder import Decoder
from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.ports import rest
from serving.ports.handlers import handlers
from serving.repository.models import Repository, ServedModel
from serving.servicer import InferenceServicer
from serving.telemetry.metrics import Metrics
from serving.telemetry.observation import Observer
from tests import tiny_ensemble

TIMEOUT_S = 30.0
TINY = {"model": "tiny", "version": "1"}


class Bench:
    """A server in this process; its batches begin when the test lets them."""

    def __init__(self, directory: Path) -> None:
        self.metrics = Metrics()
        engine = OnnxCpu(1)
        self.ensemble = ensembles.load(validate(directory), engine, self.metrics)
        self.began, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[int] = []
        self.batcher = Batcher(self.execute, engine.lanes, 4, 4, self.ensemble.metrics)
        self.repository = Repository()
        self.repository.add(ServedModel(self.ensemble, self.batcher))
        self.servicer = InferenceServicer(self.repository, Observer(self.metrics), 4, None, Decoder(1000, 1, 4))

    def execute(self, batch: Sequence[Work]):  # type: ignore[no-untyped-def]
        self.batches.append(sum(work.rows for work in batch))
        self.began.release()
        assert self.go_on.acquire(timeout=TIMEOUT_S)
        return (yield from self.ensemble.execute(batch))

    def call(self, row: float, **options: float):  # type: ignore[no-untyped-def]
        request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[self.row(row).tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
        return self.stub.ModelInfer(request, **({"timeout": TIMEOUT_S} | options))

    @staticmethod
    def row(value: float) -> np.ndarray:
        return np.full((1, 4), value, "<f4")

    async def wait_until_running(self) -> None:
        assert await asyncio.to_thread(self.began.acquire, True, TIMEOUT_S)

    async def wait_until_queued(self, rows: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.metrics.registry.get_sample_value("ensemble_queue_rows", TINY) != rows:  # noqa: ASYNC110
                await asyncio.sleep(0)  # yields to the server; how long is not of interest


@pytest.fixture
async def bench(tiny_directory: Path) -> AsyncIterator[Bench]:
    bench = Bench(tiny_directory)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers(bench.servicer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        bench.stub = GRPCInferenceServiceStub(channel)
        bench.servicer.open()
        yield bench
        for _ in range(100):
            bench.go_on.release()
    await server.stop(None)
    await bench.repository.close()


def check(response: oip.ModelInferResponse, row: float) -> None:
    probs = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(1, 3)
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(Bench.row(row)), atol=1e-6)


@pytest.mark.parametrize("cancelled", range(4))
async def test_cancelling_any_one_of_four_batched_requests_leaves_three_answered(bench: Bench, cancelled: int) -> None:
    first = bench.call(0.0)
    await bench.wait_until_running()
    calls = [bench.call(float(i)) for i in range(4)]
    await bench.wait_until_queued(4)
    calls[cancelled].cancel()
    await bench.wait_until_queued(3)
    for _ in range(2):
        bench.go_on.release()
    check(await first, 0.0)
    for i, call in enumerate(calls):
        if i != cancelled:
            check(await call, float(i))
    assert bench.batches == [1, 3]


async def test_an_expired_request_is_never_run(bench: Bench) -> None:
    first = bench.call(0.0)
    await bench.wait_until_running()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.call(1.0, timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await bench.wait_until_queued(0)
    for _ in range(2):
        bench.go_on.release()
    check(await first, 0.0)
    check(await bench.call(2.0), 2.0)
    assert bench.batches == [1, 1]


async def test_the_clients_queue_timeout_is_told_as_a_deadline(bench: Bench) -> None:
    first = bench.call(0.0)
    await bench.wait_until_running()
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[Bench.row(1.0).tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    request.parameters["timeout"].int64_param = 1  # microsecond
    late = bench.stub.ModelInfer(request, timeout=TIMEOUT_S)
    await bench.wait_until_queued(1)
    bench.go_on.release()
    check(await first, 0.0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await late
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "in the queue" in (caught.value.details() or "")
    assert bench.batches == [1]


async def test_a_full_queue_refuses_at_once(bench: Bench) -> None:
    first = bench.call(0.0)
    await bench.wait_until_running()
    calls = [bench.call(float(i)) for i in range(4)]
    await bench.wait_until_queued(4)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.call(9.0)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 rows arrived with 4 waiting; the queue holds 4" in (caught.value.details() or "")
    assert bench.batches == [1]  # the batch still runs: nobody waited for it
    for _ in range(2):
        bench.go_on.release()
    check(await first, 0.0)
    for i, call in enumerate(calls):
        check(await call, float(i))


async def test_of_ten_times_what_fits_the_excess_is_refused_unrun_and_the_rest_is_in_the_very_next_batch(
    bench: Bench,
) -> None:
    """Latency in batches, not seconds: whoever is accepted waits for the batch that runs, however many are not."""
    first = bench.call(0.0)
    await bench.wait_until_running()
    accepted = [first]
    for _ in range(5):
        calls = [bench.call(float(i)) for i in range(40)]
        codes = [asyncio.create_task(call.code()) for call in calls]
        for code in itertools.islice(asyncio.as_completed(codes), 36):  # while the batch still runs
            assert await code is grpc.StatusCode.RESOURCE_EXHAUSTED
        bench.go_on.release()
        check(await accepted[0], 0.0)
        await bench.wait_until_running()
        accepted = [call for call in calls if not call.done()]
        assert len(accepted) == 4
    bench.go_on.release()
    await asyncio.gather(*accepted)
    assert bench.batches == [1, 4, 4, 4, 4, 4]


async def test_cancelling_a_stream_takes_what_waits_out_of_the_queue(bench: Bench) -> None:
    first = bench.call(0.0)
    await bench.wait_until_running()

    async def requests() -> AsyncIterator[oip.ModelInferRequest]:
        for i in range(4):
            request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[Bench.row(i).tobytes()])
            request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
            yield request
        await asyncio.Event().wait()  # stays open

    stream = bench.stub.ModelStreamInfer(requests(), timeout=TIMEOUT_S)
    await bench.wait_until_queued(4)
    stream.cancel()
    await bench.wait_until_queued(0)
    bench.go_on.release()
    check(await first, 0.0)
    assert bench.batches == [1]


@pytest.fixture
async def http_address(bench: Bench) -> AsyncIterator[tuple[str, int]]:
    server = rest.Server(rest.application(bench.servicer, None, 10_000), "127.0.0.1", 0, None)
    await server.start()
    yield "127.0.0.1", server.port
    await server.stop()


def http_request(row: float, length: int = 0) -> bytes:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [row] * 4}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


async def test_an_http_client_that_goes_away_takes_its_rows_out_of_the_queue(
    bench: Bench, http_address: tuple[str, int]
) -> None:
    first = bench.call(0.0)
    await bench.wait_until_running()
    _, writer = await asyncio.open_connection(*http_address)
    reader, other = await asyncio.open_connection(*http_address)
    writer.write(http_request(1.0))
    await bench.wait_until_queued(1)
    other.write(http_request(2.0))
    await bench.wait_until_queued(2)
    writer.close()
    await bench.wait_until_queued(1)
    for _ in range(2):
        bench.go_on.release()
    check(await first, 0.0)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    assert bench.batches == [1, 1]
    other.close()


async def test_an_http_body_that_does_not_arrive_is_given_up(
    http_address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "READ_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection(*http_address)
    writer.write(http_request(1.0, length=5000))  # says that more will come
    async with asyncio.timeout(TIMEOUT_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_an_http_connection_that_begins_no_request_is_closed(
    bench: Bench, http_address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "IDLE_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(*http_address)
    busy_reader, busy = await asyncio.open_connection(*http_address)
    busy.write(http_request(1.0))
    await bench.wait_until_running()
    writer.write(b"GET /v2 HTTP/1.1\r\nX-Slow: ")  # and no more
    async with asyncio.timeout(TIMEOUT_S):
        assert await reader.read() == b""
        writer.close()
        bench.go_on.release()
        assert (await busy_reader.readline()).startswith(b"HTTP/1.1 200 ")  # it was not idle but answered
        busy.write(b"\r\n")
        await busy_reader.read()
    busy.close()


async def test_an_http_request_that_fails_is_told_without_detail(
    bench: Bench, http_address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(batch: Sequence[Work]):  # type: ignore[no-untyped-def]
        raise RuntimeError("secret")

    bench.batcher._execute = fail
    reader, writer = await asyncio.open_connection(*http_address)
    writer.write(http_request(1.0))
    assert (await reader.readline()).startswith(b"HTTP/1.1 500 ")
    writer.close()
    text = (await reader.read()).decode()
    assert text.endswith('{"error":"internal error"}')
    assert "secret" in caplog.text


async def test_before_the_model_is_loaded_the_answer_is_unavailable() -> None:
    repository = Repository()
    repository.announce("tiny", "1")
    server = grpc.aio.server()
    servicer = InferenceServicer(repository, Observer(Metrics()), 4, None, Decoder(1, 1, 1))
    server.add_generic_rpc_handlers((handlers(servicer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(oip.ServerLiveRequest())).live
        assert not (await stub.ServerReady(oip.ServerReadyRequest())).ready
        assert not (await stub.ModelReady(oip.ModelReadyRequest(name="tiny"))).ready
        for call in (
            stub.ModelInfer(oip.ModelInferRequest(model_name="tiny")),
            stub.ModelMetadata(oip.ModelMetadataRequest(name="tiny")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(None)
