"""Decodes the pictures of a request in threads of its own, so that the event loop, and requests without any, go on."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from serving import pictures
from serving.errors import DeadlineExceeded, InvalidRequest, Overloaded
from serving.pictures import NotAPicture


class Decoder:
    """max_pixels: of all pictures of a request. max_waiting: pictures that are, or wait to be, decoded."""

    def __init__(self, max_pixels: int, threads: int, max_waiting: int) -> None:
        self._max_pixels = max_pixels
        self._max_waiting = max_waiting
        self._waiting = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def decode(
        self, encoded: Sequence[bytes], row_shape: tuple[int, ...], deadline: float | None
    ) -> NDArray[np.uint8]:
        """uint8 [B, C, H, W]. Raises InvalidRequest, Overloaded, DeadlineExceeded (monotonic clock)."""
        if self._waiting + len(encoded) > self._max_waiting:
            raise Overloaded(
                f"{len(encoded)} pictures arrived with {self._waiting} waiting; the decoder holds {self._max_waiting}"
            )
        self._waiting += len(encoded)
        work = self._pool.submit(self._rows, encoded, row_shape, deadline)
        # Counted until the thread is done with it, however early the caller gives up.
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done, len(encoded)))
        return await asyncio.wrap_future(work)

    def _done(self, count: int) -> None:
        self._waiting -= count

    def _rows(self, encoded: Sequence[bytes], row_shape: tuple[int, ...], deadline: float | None) -> NDArray[np.uint8]:
        left = self._max_pixels
        rows = np.empty((len(encoded), *row_shape), np.uint8)
        try:
            for i, picture in enumerate(encoded):
                left -= pictures.pixels(picture)
                if left < 0:
                    raise InvalidRequest(
                        f"picture {i}: more than {self._max_pixels} pixels in the request with this one"
                    )
        except NotAPicture as error:
            raise InvalidRequest(f"picture {i}: {error}") from None
        for i, picture in enumerate(encoded):
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded(f"the deadline passed with {i} of {len(encoded)} pictures decoded")
            try:
                rows[i] = pictures.decode(picture, row_shape, self._max_pixels)
            except NotAPicture as error:
                raise InvalidRequest(f"picture {i}: {error}") from None
        return rows
