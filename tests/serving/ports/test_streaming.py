"""Streams: answers in their order, errors that fail one request, a bounded number under way, clients that leave."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.ports.streaming import answers
from tests import tiny_ensemble
from tests.server_process import ServerProcess

TIMEOUT_S = 30.0


class Requests:
    """0, 1, 2, …, as far as they are read; raises after the last if told so."""

    def __init__(self, count: int, failure: Exception | None = None) -> None:
        self.read = 0
        self._count, self._failure = count, failure

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(self._count):
            self.read += 1
            yield number
        if self._failure is not None:
            raise self._failure


async def settle() -> None:
    """Everything that can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_keep_the_order_whatever_is_done_first() -> None:
    done = [asyncio.Event() for _ in range(4)]

    async def answer(number: int) -> int:
        await done[number].wait()
        return number

    async def collect() -> list[int]:
        return [number async for number in answers(aiter(Requests(4)), answer)]

    collecting = asyncio.create_task(collect())
    for number in (3, 1, 0, 2):
        await settle()
        done[number].set()
    assert await collecting == [0, 1, 2, 3]


async def test_no_more_than_so_many_are_under_way_and_the_rest_is_not_read() -> None:
    requests, under_way, go_on = Requests(100), 0, asyncio.Event()

    async def answer(number: int) -> int:
        nonlocal under_way
        under_way += 1
        await go_on.wait()
        under_way -= 1
        return number

    stream = answers(aiter(requests), answer, in_flight=3)
    first = asyncio.ensure_future(anext(stream))
    await settle()
    assert (under_way, requests.read) == (3, 3)
    go_on.set()
    assert [await first, *[number async for number in stream]] == list(range(100))
    assert requests.read == 100


async def test_who_leaves_early_cancels_what_is_under_way() -> None:
    cancelled: list[int] = []

    async def answer(number: int) -> int:
        if number == 0:
            return 0
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        raise AssertionError

    requests = Requests(100)
    stream = answers(aiter(requests), answer, in_flight=3)
    assert await anext(stream) == 0
    await settle()
    await stream.aclose()  # type: ignore[attr-defined]
    assert cancelled == list(range(1, requests.read))
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_reading_raises_comes_after_the_answers_before_it() -> None:
    async def answer(number: int) -> int:
        return number

    stream = answers(aiter(Requests(5, ValueError("broken"))), answer)
    assert [await anext(stream) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)


ROWS = np.random.default_rng(0).normal(size=(40, 4)).astype("<f4")


def request(i: int, name: str = "tiny") -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name=name, id=f"r{i}", raw_input_contents=[ROWS[i : i + 1].tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    return message


def test_an_error_fails_its_request_and_not_the_stream(tiny_server: ServerProcess) -> None:
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        messages = (request(i, "other" if i == 7 else "tiny") for i in range(40))
        responses = list(GRPCInferenceServiceStub(channel).ModelStreamInfer(messages, timeout=TIMEOUT_S))
    assert [response.infer_response.id for response in responses] == [f"r{i}" for i in range(40)]
    expected = tiny_ensemble.pooled_probs(ROWS)
    for i, response in enumerate(responses):
        if i == 7:
            assert response.error_message == "unknown model 'other'; this server has 'tiny'"
            assert not response.infer_response.outputs
            continue
        assert response.error_message == ""
        assert response.infer_response.parameters["triton_final_response"].bool_param
        probs = np.frombuffer(response.infer_response.raw_output_contents[0], "<f4")
        np.testing.assert_allclose(probs, expected[i], atol=1e-6)


def test_bytes_that_are_no_request_end_the_stream_after_the_answers_before_them(tiny_server: ServerProcess) -> None:
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )
        messages = [request(0).SerializeToString(), b"\xff" * 9, request(1).SerializeToString()]
        responses = call(iter(messages), timeout=TIMEOUT_S)
        assert next(responses).infer_response.id == "r0"
        with pytest.raises(grpc.RpcError) as caught:
            next(responses)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "9 bytes arrived that are no inference.ModelInferRequest"


def test_a_client_that_leaves_its_stream_open_and_goes_away_leaves_the_server_as_it_was(
    tiny_server: ServerProcess,
) -> None:
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        responses = stub.ModelStreamInfer((request(i % 40) for i in range(10_000)), timeout=TIMEOUT_S)
        next(responses)
        responses.cancel()
        assert stub.ModelInfer(request(3), timeout=TIMEOUT_S).id == "r3"
