"""Our client of the comparison: what it counts, and HTTP as servers of all kinds speak it."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from benchmarks.serve import client
from benchmarks.serve.peers import Body

BODY = Body("/predict", "text/plain", b"question")


async def test_open_loop_counts_time_from_when_a_call_was_due_and_waits_for_no_answer() -> None:
    all_there = asyncio.Event()
    arrived = 0

    async def call(_: Body) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == 3:
            all_there.set()
        await all_there.wait()
        return b"answer"

    outcome = await client.open_loop(call, BODY, [0.0, 0.05, 0.1])
    assert outcome.codes == {"OK": 3}
    first, second, third = sorted(outcome.answered, reverse=True)
    assert first - third == pytest.approx(0.1, abs=0.02)
    assert second - third == pytest.approx(0.05, abs=0.02)


async def test_a_call_that_leaves_late_has_waited_since_it_was_due() -> None:
    async def call(_: Body) -> bytes:
        time.sleep(0.1)  # noqa: ASYNC251 as a client does that is short of CPU
        return b""

    outcome = await client.open_loop(call, BODY, [0.0, 0.01])
    assert max(outcome.answered) >= 0.19
    assert max(outcome.late) >= 0.09


def test_random_arrivals_are_a_poisson_process_of_the_same_rate_and_equal_for_everybody() -> None:
    dues = client.at_random(rate=200, seconds=50, seed=1)
    assert dues == client.at_random(rate=200, seconds=50, seed=1)
    assert len(dues) == len(client.evenly(200, 50)) == 10000
    gaps = np.diff(dues)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential


async def test_closed_loop_never_has_more_calls_at_a_time_and_makes_exactly_the_count() -> None:
    now = most = 0

    async def call(_: Body) -> bytes:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return b""

    outcome = await client.closed_loop(call, BODY, parallel=3, count=10)
    assert (len(outcome.answered), most) == (10, 3)


async def test_what_is_interrupted_counts_the_calls_in_flight_and_begins_no_other() -> None:
    begun = 0
    gone = asyncio.Event()

    async def call(_: Body) -> bytes:
        nonlocal begun
        begun += 1
        number = begun
        if number <= 4:  # each caller's first call ends, its second does not before the server does
            return b"answer"
        await gone.wait()
        if number == 8:
            raise client.Failed("UNAVAILABLE")
        return b"answer"

    outcome = await client.interrupted(call, BODY, 4, 0.05, gone.set)
    assert begun == 8
    assert outcome.codes == {"OK": 3, "UNAVAILABLE": 1}


@contextlib.asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Gives these answers in turn, and closes after an empty one or where the answer says so.

    Yields the address, and the number of the connection on which each request came.
    """
    left, connections, asked = iter(answers), itertools.count(), []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, answer = next(connections), b"?"
        with contextlib.suppress(asyncio.IncompleteReadError):  # the client has gone
            while answer and b"Connection: close" not in answer:
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(len(BODY.data)) == BODY.data
                asked.append(number)
                answer = next(left)
                writer.write(answer)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", asked


PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nanswer"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nans\r\n3;x=y\r\nwer\r\n0\r\n\r\n"


async def test_http_answers_of_stated_length_and_in_chunks_come_over_one_connection() -> None:
    async with serving(PLAIN, CHUNKED, PLAIN) as (address, asked), client.connect(address, "http") as call:
        assert [await call(BODY) for _ in range(3)] == [b"answer"] * 3
    assert asked == [0, 0, 0]


async def test_after_a_connection_that_the_server_closes_another_is_opened() -> None:
    closing = PLAIN.replace(b"content-length", b"Connection: close\r\ncontent-length")
    async with serving(closing, PLAIN) as (address, asked), client.connect(address, "http") as call:
        assert [await call(BODY) for _ in range(2)] == [b"answer"] * 2
    assert asked == [0, 1]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "HTTP 503"),
        (b"", "CONNECTION_LOST"),
        (PLAIN[:-2].replace(b"content-length", b"Connection: close\r\ncontent-length"), "CONNECTION_LOST"),  # cut short
    ],
)
async def test_http_failures_have_a_code(answer: bytes, code: str) -> None:
    async with serving(answer) as (address, _), client.connect(address, "http") as call:
        outcome = await client.at_once(call, BODY, 1)
    assert outcome.codes == {code: 1}


async def test_a_server_that_does_not_answer_in_time_is_a_failure() -> None:
    asked = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        asked.set()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with client.connect(f"{host}:{port}", "http", timeout_s=0.05) as call:
            with pytest.raises(client.Failed, match="DEADLINE_EXCEEDED"):
                await call(BODY)
        await asked.wait()
