"""Our own client on asyncio: open loop, many at once, and what becomes of calls in flight when a server is ended.

It knows the status of each call, which a generator of HTTP load does not in gRPC; closed loops are measured by
`generator.py` where h2load is installed.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import grpc
import numpy as np

from benchmarks.serve.peers import Body

Call = Callable[[Body], Awaitable[bytes]]


class Failed(RuntimeError):
    """A call without an answer. code: gRPC's, an HTTP status, or what became of the connection."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Outcome:
    """Seconds of each call from its due time to its end, in the order of ending."""

    answered: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)  # how much later than it was due each call began
    answers: set[bytes] = field(default_factory=set)  # one of each kind, to be looked at when nothing is timed

    async def of(self, call: Call, body: Body, due: float) -> None:
        """Counts one call. due: on the clock of time.perf_counter."""
        try:
            answer = await call(body)
        except Failed as failed:
            self.codes[failed.code] += 1
            self.failed.append(time.perf_counter() - due)
        else:
            self.codes["OK"] += 1
            self.answered.append(time.perf_counter() - due)
            self.answers.add(answer)


class Client(Protocol):
    async def __call__(self, body: Body) -> bytes:
        """The message or the HTTP body of an answer. Raises Failed."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class GrpcClient:
    """connections: which calls take in turn."""

    def __init__(self, address: str, connections: int, timeout_s: float) -> None:
        # A pool for each: or all channels to one address would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(address, options) for _ in range(connections)]
        self._timeout_s = timeout_s
        self._calls = 0

    async def __call__(self, body: Body) -> bytes:
        channel: Any = self._channels[self._calls % len(self._channels)]
        self._calls += 1
        try:
            return bytes(await channel.unary_unary(body.path)(body.data, timeout=self._timeout_s))
        except grpc.aio.AioRpcError as error:
            raise Failed(error.code().name) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))


class HttpClient:
    """POST over HTTP/1.1: a connection for each call at a time, kept for those that follow."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __call__(self, body: Body) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                status, content = await self._post(body)
        except TimeoutError:
            raise Failed("DEADLINE_EXCEEDED") from None
        except (OSError, asyncio.IncompleteReadError):
            raise Failed("CONNECTION_LOST") from None
        if status != 200:
            raise Failed(f"HTTP {status}")
        return content

    async def _post(self, body: Body) -> tuple[int, bytes]:
        host, port = self._address.split(":")
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(host, int(port))
        try:
            head = (
                f"POST {body.path} HTTP/1.1\r\nHost: {self._address}\r\nContent-Type: {body.content_type}\r\n"
                f"Content-Length: {len(body.data)}\r\n\r\n"
            )
            writer.write(head.encode() + body.data)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            content = await _content(reader, headers)
        except BaseException:
            writer.close()
            raise
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(first.split()[1]), content

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _content(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    content = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        content += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return content


def connect(address: str, protocol: str, connections: int = 8, timeout_s: float = 60.0) -> Client:
    return GrpcClient(address, connections, timeout_s) if protocol == "oip-grpc" else HttpClient(address, timeout_s)


async def closed_loop(call: Call, body: Body, parallel: int, count: int) -> Outcome:
    """`count` calls by so many callers, each of which waits for its answer before it asks again."""
    outcome = Outcome()
    left = count

    async def caller() -> None:
        nonlocal left
        while left:
            left -= 1
            await outcome.of(call, body, time.perf_counter())

    await asyncio.gather(*(caller() for _ in range(parallel)))
    return outcome


def evenly(rate: float, seconds: float) -> list[float]:
    """When calls are due, in seconds from the start, at `rate` calls a second."""
    return [i / rate for i in range(int(rate * seconds))]


def at_random(rate: float, seconds: float, seed: int) -> list[float]:
    """The same of calls that know nothing of each other, a Poisson process; the count is that of `evenly`."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    return [float(due) for due in np.cumsum(gaps)]


async def open_loop(call: Call, body: Body, dues: Sequence[float]) -> Outcome:
    """Calls leave by the clock, whether or not answers have come; the time of each counts from when it was due."""
    outcome = Outcome()
    start = time.perf_counter()
    tasks = []
    for after in dues:
        due = start + after
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        outcome.late.append(max(time.perf_counter() - due, 0.0))
        tasks.append(asyncio.create_task(outcome.of(call, body, due)))
    await asyncio.gather(*tasks)
    return outcome


async def at_once(call: Call, body: Body, count: int) -> Outcome:
    outcome = Outcome()
    due = time.perf_counter()
    await asyncio.gather(*(outcome.of(call, body, due) for _ in range(count)))
    return outcome


async def interrupted(call: Call, body: Body, parallel: int, after_s: float, interrupt: Callable[[], None]) -> Outcome:
    """So many callers in closed loops; what became of the calls that were in flight when `interrupt` was called."""
    outcomes: list[Outcome] = []
    over = False

    async def caller() -> None:
        while not over:
            outcome = Outcome()
            await outcome.of(call, body, time.perf_counter())
        outcomes.append(outcome)

    tasks = [asyncio.create_task(caller()) for _ in range(parallel)]
    await asyncio.sleep(after_s)
    interrupt()
    over = True
    await asyncio.gather(*tasks)
    last = Outcome()
    for outcome in outcomes:
        last.answered += outcome.answered
        last.failed += outcome.failed
        last.codes += outcome.codes
        last.answers |= outcome.answers
    return last
