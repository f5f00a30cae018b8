"""How many rows a client may ask about: a token bucket each, in bounded memory.

A bucket is one number, the time at which it will be full again (the generic cell rate algorithm): it refills by itself.
"""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

MOST_CLIENTS = 65_536  # whose buckets are remembered
TOLD_SECONDS = 60.0  # the log names a client that is refused no more often
TICK_SECONDS = 1e-6  # so much early is not early: waits are told rounded up, and floats round


@dataclass(slots=True)
class _Bucket:
    full_at: float
    told_at: float = -math.inf


class Budget:
    """rate: rows a second in the long run. burst: rows at once, after a pause; no request may have more.

    With more clients than are remembered, the one whose last request is longest ago is forgotten; what it owed is owed
    by every client that is not remembered, so nobody is better off for having been forgotten.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
        most_clients: int = MOST_CLIENTS,
    ) -> None:
        self._rate, self._burst = rate, burst
        self._clock = clock
        self._most_clients = most_clients
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()  # who asked last is last
        self._forgotten_full_at = -math.inf  # the latest

    def take(self, client: str, rows: int) -> float:
        """0, and the rows are taken; or the seconds until they could be, and none is."""
        now = self._clock()
        bucket = self._buckets.setdefault(client, _Bucket(self._forgotten_full_at))
        self._buckets.move_to_end(client)
        if len(self._buckets) > self._most_clients:
            _, forgotten = self._buckets.popitem(last=False)
            self._forgotten_full_at = max(self._forgotten_full_at, forgotten.full_at)
        full_at = max(bucket.full_at, now)
        wait_s = full_at - now - (self._burst - rows) / self._rate
        if wait_s <= TICK_SECONDS:
            bucket.full_at = full_at + rows / self._rate
            return 0.0
        if now - bucket.told_at >= TOLD_SECONDS:
            bucket.told_at = now
            logger.warning("query budget is used up client=%s rows=%d wait_seconds=%.1f", client, rows, wait_s)
        return wait_s
