"""Many requests on one stream: read ahead a little, answered in their order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

IN_FLIGHT = 16  # of a stream. The next request is not even read, so the client feels that it is ahead

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answers(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Response]], in_flight: int = IN_FLIGHT
) -> AsyncIterator[Response]:
    """An answer to each request. Raises what reading or answering raises, once all before it are given.

    Whoever stops iterating early, a client that goes away among them, cancels what is under way.
    """
    room = asyncio.Semaphore(in_flight)
    under_way: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                under_way.put_nowait(asyncio.ensure_future(answer(request)))
                await room.acquire()
        finally:
            under_way.put_nowait(None)

    reading = asyncio.create_task(read())
    current: asyncio.Future[Response] | None = None
    try:
        while (current := await under_way.get()) is not None:
            yield await current
            room.release()
        await reading
    finally:
        left: list[asyncio.Future[Any]] = [
            reading,
            *(future for future in (current, *_drained(under_way)) if future is not None),
        ]
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _drained(queue: "asyncio.Queue[asyncio.Future[Response] | None]") -> list["asyncio.Future[Response] | None"]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
