"""Both clients against a real server, and against servers that fail as the test says."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import pytest
from PIL import Image

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from serving.client import Answer, AsyncClient, Client
from serving.client.inputs import InvalidInput
from serving.client.messages import Asked
from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
Predict = Callable[..., Answer]


def ask_blocking(target: str, model: str, source: Any, asked: Asked, **options: Any) -> Answer:
    with Client(target, model, **options) as client:
        return client.predict(source, **asked)


def ask_asyncio(target: str, model: str, source: Any, asked: Asked, **options: Any) -> Answer:
    async def ask() -> Answer:
        async with AsyncClient(target, model, **options) as client:
            return await client.predict(source, **asked)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_blocking, ask_asyncio])


@both
def test_answers_equal_the_definition(tiny_server: ServerProcess, ask: Predict) -> None:
    answer = ask(tiny_server.grpc, "tiny", ROWS, {"members": [2, "endpoint-0"], "member_probs": True})
    np.testing.assert_allclose(answer.probs, tiny_ensemble.pooled_probs(ROWS, [2, 0]), atol=1e-6)
    assert answer.member_probs is not None
    np.testing.assert_allclose(answer.member_probs, tiny_ensemble.member_probs(ROWS)[[2, 0]].swapaxes(0, 1), atol=1e-6)
    assert (answer.policy, answer.members_run, answer.model_version) == ("members", 2, "1")


@both
def test_more_rows_than_a_request_takes_come_back_in_order(tiny_server: ServerProcess, ask: Predict) -> None:
    rows = np.random.default_rng(1).normal(size=(2000, 4)).astype(np.float32)
    answer = ask(tiny_server.grpc, "tiny", rows, {})
    np.testing.assert_allclose(answer.probs, tiny_ensemble.pooled_probs(rows), atol=1e-6)
    assert answer.entropy.shape == answer.mutual_information.shape == (2000,)


@both
def test_files_and_lists_of_rows_are_taken(tiny_server: ServerProcess, ask: Predict, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS[1:].astype(np.float64))
    answer = ask(tiny_server.grpc, "tiny", [ROWS[0], tmp_path / "rows.npy", str(tmp_path / "rows.npy")], {})
    expected = tiny_ensemble.pooled_probs(ROWS[[0, *range(1, 7), *range(1, 7)]])
    np.testing.assert_allclose(answer.probs, expected, atol=1e-6)


@both
def test_pictures_in_memory_and_in_files_are_taken(ask: Predict, tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "tiny", datatype="UINT8", row_shape=(1, 2, 2))
    pixels = np.random.default_rng(0).integers(0, 4, (3, 1, 2, 2), np.uint8)
    images = [Image.fromarray(each[0]) for each in pixels]
    images[1].save(tmp_path / "one.png")
    with ServerProcess(tmp_path / "tiny") as server:
        answer = ask(server.grpc, "tiny", [images[0], tmp_path / "one.png", pixels[2]], {})
    np.testing.assert_allclose(answer.probs, tiny_ensemble.pooled_probs(pixels), atol=1e-6)


@both
def test_what_does_not_fit_the_model_is_refused_before_it_is_sent(
    tiny_server: ServerProcess, ask: Predict, tmp_path: Path
) -> None:
    for source, message in (
        (ROWS[:, :3], r"the input is \[7, 3\]; the model takes \[4\] or \[B, 4\]"),
        (ROWS[:0], r"the input is \[0, 4\]"),
        ([], "there is no input"),
        (ROWS.astype(complex), "holds complex128; the model takes FP32"),
        (Image.new("L", (2, 2)), r"a picture; the model takes \[4\], not \[1 or 3, H, W\]"),
    ):
        with pytest.raises(InvalidInput, match=message):
            ask(tiny_server.grpc, "tiny", source, {})
    with pytest.raises(FileNotFoundError):
        ask(tiny_server.grpc, "tiny", tmp_path / "none.npy", {})


def test_asyncio_asks_while_other_things_go_on(tiny_server: ServerProcess) -> None:
    async def ask() -> list[Answer]:
        async with AsyncClient(tiny_server.grpc, "tiny") as client:
            calls = [client.predict(ROWS[i : i + 1]) for i in range(7)]
            answers = await asyncio.gather(*calls)
            streamed = [answer async for answer in client.answers([ROWS[:1], ROWS[1:]])]
            np.testing.assert_array_equal(np.concatenate([answer.probs for answer in streamed])[0], answers[0].probs[0])
            return answers

    probs = np.concatenate([answer.probs for answer in asyncio.run(ask())])
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)


# A process shares its connections by address, and gRPC remembers for some seconds that one was refused: a server that
# got the port of one just gone would be out of reach. So each has an address of its own.
LOOPBACK = (f"127.0.{i // 250}.{i % 250 + 1}" for i in itertools.count(250))  # 127.0.1.1 on


class Flaky(GRPCInferenceServiceServicer):
    """Fails with the given codes, one a request, then answers; keeps what it was asked with."""

    def __init__(self, codes: Sequence[grpc.StatusCode] = ()) -> None:
        self.codes = list(codes)
        self.calls: list[grpc.ServicerContext] = []
        self.headers: list[dict[str, Any]] = []
        self.remaining_s: list[float] = []
        self._executor = ThreadPoolExecutor(4)
        self._server = grpc.server(self._executor, options=[("grpc.max_receive_message_length", -1)])
        add_GRPCInferenceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        host = next(LOOPBACK)
        self.address = f"{host}:{self._server.add_insecure_port(f'{host}:0')}"
        self._lock = threading.Lock()

    def ModelMetadata(self, message: Any, context: grpc.ServicerContext) -> oip.ModelMetadataResponse:  # noqa: N802
        tensor = oip.ModelMetadataResponse.TensorMetadata(name="input", datatype="FP32", shape=[-1, 100_000])
        properties = {"class_labels": '["a"]', "members": "1", "max_batch_rows": "4"}
        return oip.ModelMetadataResponse(name="flaky", versions=["1"], inputs=[tensor], properties=properties)

    def ModelInfer(self, message: Any, context: grpc.ServicerContext) -> oip.ModelInferResponse:  # noqa: N802
        with self._lock:
            self.headers.append(dict(context.invocation_metadata()))
            self.remaining_s.append(context.time_remaining() or 1e9)
            code = self.codes.pop(0) if self.codes else None
        if code is not None:
            context.abort(code, "as the test says")
        response = oip.ModelInferResponse(model_name="flaky")
        response.outputs.add(name="probs", datatype="FP32", shape=[1, 1])
        response.raw_output_contents.append(np.ones(1, "<f4").tobytes())
        return response

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()
        self._executor.shutdown()


ROW = np.zeros(100_000, np.float32)  # beyond the 256 KiB that gRPC would keep for a second attempt by itself


@both
def test_unavailable_is_tried_again_with_the_same_request(ask: Predict) -> None:
    with Flaky([grpc.StatusCode.UNAVAILABLE] * 3) as server:
        assert ask(server.address, "flaky", ROW, {}).probs.tolist() == [[1.0]]
        attempts = [headers.get("grpc-previous-rpc-attempts") for headers in server.headers]
    assert attempts == [None, "1", "2", "3"]


@both
@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INVALID_ARGUMENT,
    ],
)
def test_no_other_error_is_tried_again(ask: Predict, code: grpc.StatusCode) -> None:
    with Flaky([code]) as server, pytest.raises(grpc.RpcError) as caught:
        ask(server.address, "flaky", ROW, {})
    assert caught.value.code() is code
    assert len(server.headers) == 1


@both
def test_attempts_end(ask: Predict) -> None:
    for attempts in (1, 3):
        with Flaky([grpc.StatusCode.UNAVAILABLE] * 9) as server, pytest.raises(grpc.RpcError) as caught:
            ask(server.address, "flaky", ROW, {}, attempts=attempts)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len(server.headers) == attempts
    with pytest.raises(ValueError, match="attempts is 6; expected 1 to 5"):
        ask("127.0.0.1:1", "flaky", ROW, {}, attempts=6)


@both
def test_every_call_has_a_deadline_and_a_token_if_given(ask: Predict) -> None:
    with Flaky([grpc.StatusCode.UNAVAILABLE]) as server:
        ask(server.address, "flaky", ROW, {}, timeout_s=77.0, token="secret")
        assert all(70 < remaining_s < 80 for remaining_s in server.remaining_s)  # gRPC rounds it up on the wire
        assert [headers["authorization"] for headers in server.headers] == ["Bearer secret"] * 2


def test_a_name_that_stands_for_several_servers_is_asked_in_turn() -> None:
    with Flaky() as one, Flaky() as two, Client(f"ipv4:{one.address},{two.address}", "flaky") as client:
        # Until both are connected, one answers alone.
        deadline = threading.Event()
        timer = threading.Timer(30, deadline.set)
        timer.start()
        while not (one.headers and two.headers) and not deadline.is_set():
            client.predict(ROW)
        timer.cancel()
        before = len(one.headers), len(two.headers)
        for _ in range(10):
            client.predict(ROW)
        assert (len(one.headers) - before[0], len(two.headers) - before[1]) == (5, 5)


def test_the_other_server_is_asked_when_one_refuses() -> None:
    unavailable = [grpc.StatusCode.UNAVAILABLE] * 1000
    with Flaky() as one, Flaky(unavailable) as two, Client(f"ipv4:{one.address},{two.address}", "flaky") as client:
        for _ in range(6):
            assert client.predict(ROW).probs.tolist() == [[1.0]]


def test_leaving_a_stream_of_answers_early_cancels_what_was_sent() -> None:
    def sources() -> Iterator[np.ndarray]:
        for i in range(1000):
            taken.append(i)
            yield ROW

    taken: list[int] = []
    with Flaky() as server, Client(server.address, "flaky") as client:
        answers = client.answers(sources())
        next(answers)
        answers.close()
    assert len(taken) == 4  # a few ahead, no more
