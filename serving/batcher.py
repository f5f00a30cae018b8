"""The one bounded queue: the next batch forms while the last one runs.

No timer: a lone request runs at once, and the longer a batch takes, the more rows the next one has. Rows are
counted, not requests. An urgent request is taken as if it had come earlier, so it overtakes, and nobody waits forever.
Batchers that share a device take turns, a batch each. Lives on the event loop; only `execute`
runs in a thread.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serving.errors import DeadlineExceeded, Overloaded, ServingError
from serving.networks.cpu import give_way
from serving.policy import Choice
from serving.prediction import Prediction
from serving.telemetry.metrics import ModelMetrics
from serving.telemetry.stage import Stage

logger = logging.getLogger(__name__)

DEFAULT_PRIORITY, LAST_PRIORITY = 2, 3  # 1 is the most urgent
PRIORITY_SECONDS = 1.0  # a level is worth so much waiting


@dataclass(eq=False)
class Work:
    """A request's rows in the queue."""

    inputs: NDArray[np.generic]  # [B, ...]
    choice: Choice
    deadline: float | None  # on the batcher's clock; the rows are not run after it
    answer: "asyncio.Future[Prediction]"
    arrived: float = field(default=0.0)
    stages: list[Stage] = field(default_factory=list)  # what it went through, for who watches
    priority: int = DEFAULT_PRIORITY

    @property
    def rows(self) -> int:
        return len(self.inputs)

    @property
    def turn(self) -> float:
        """When it would have come, were all equally urgent: the earliest is next."""
        return self.arrived + PRIORITY_SECONDS * self.priority


# Runs in a thread, on at least one work; an exception in place of a prediction fails that work alone.
Execute = Callable[[Sequence[Work]], Sequence[Prediction | ServingError]]


class Batcher:
    def __init__(
        self,
        execute: Execute,
        max_batch_rows: int,
        max_queue_rows: int,
        metrics: ModelMetrics,
        clock: Callable[[], float] = time.monotonic,
        turn: asyncio.Lock | None = None,
    ) -> None:
        self._execute = execute
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        metrics.queue_limit_rows.set(max_queue_rows)
        self._clock = clock  # monotonic: the wall clock can step back
        self._turn = turn or asyncio.Lock()  # for the device, which other models may want as well
        self._queues: dict[int, deque[Work]] = {level: deque() for level in range(1, LAST_PRIORITY + 1)}  # by priority
        self._queued_rows = 0
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "batch", give_way)
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[None]":
        """The task never ends by itself; if it does, nothing will be answered any more."""
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name="batcher")
        return self._loop_task

    async def stop(self) -> None:
        """Call once nothing waits any more; a batch that runs is finished."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    async def submit(
        self,
        inputs: NDArray[np.generic],
        choice: Choice,
        deadline: float | None,
        stages: list[Stage] | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Prediction:
        """The rows' answer. Cancelling the caller takes them out of the queue.

        stages: gets what they went through. priority: 1 to LAST_PRIORITY.

        Raises Overloaded at once if the queue has no room, DeadlineExceeded if they could not be run in time.
        """
        rows = len(inputs)
        if self._queued_rows + rows > self._max_queue_rows:
            self._metrics.rejected["queue_full"].inc()
            raise Overloaded(
                f"{rows} rows arrived with {self._queued_rows} waiting; the queue holds {self._max_queue_rows}"
            )
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        work = Work(inputs, choice, deadline, answer, self._clock(), [] if stages is None else stages, priority)
        self._queues[priority].append(work)
        self._count(rows)
        self._arrival.set()
        try:
            return await answer
        except asyncio.CancelledError:
            self._drop(work)
            raise

    def _drop(self, work: Work) -> None:
        try:
            self._queues[work.priority].remove(work)
        except ValueError:
            return  # it runs already; the rest of its batch must not suffer
        self._count(-work.rows)
        self._metrics.rejected["cancelled"].inc()

    def _count(self, rows: int) -> None:
        self._queued_rows += rows
        self._metrics.queue_rows.inc(rows)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrival.wait()
            async with self._turn:
                batch = self._next_batch()  # only now: what came while others ran belongs to it
                if not batch:
                    self._arrival.clear()
                    continue
                now = self._clock()
                for work in batch:
                    self._metrics.queue_seconds.observe(now - work.arrived)
                    work.stages.append(Stage("queue", work.arrived, now, work.rows))
                self._metrics.batch_rows.observe(sum(work.rows for work in batch))
                results = await loop.run_in_executor(self._thread, self._answer, batch)
            for work, result in zip(batch, results, strict=True):
                _settle(work, result)

    def _answer(self, batch: Sequence[Work]) -> Sequence[Prediction | ServingError]:
        """In the thread. If a batch fails, each of its requests runs alone: one must not take down its neighbours."""
        try:
            return self._execute(batch)
        except Exception:
            if len(batch) > 1:
                logger.warning("batch failed and its requests run one by one requests=%d", len(batch), exc_info=True)
                return [self._answer([work])[0] for work in batch]
            logger.exception("request failed rows=%d", batch[0].rows)
            return [ServingError("internal error")]

    def _next_batch(self) -> list[Work]:
        """Those whose turn is first, as many as fit; what has expired leaves the queue unrun."""
        batch: list[Work] = []
        rows = 0
        while waiting := [queue for queue in self._queues.values() if queue]:
            queue = min(waiting, key=lambda queue: queue[0].turn)
            work = queue[0]
            if work.deadline is not None and self._clock() >= work.deadline:
                queue.popleft()
                self._count(-work.rows)
                self._metrics.rejected["expired"].inc()
                waited = self._clock() - work.arrived
                _settle(work, DeadlineExceeded(f"the deadline passed after {waited:.3f} s in the queue"))
                continue
            if rows + work.rows > self._max_batch_rows:
                break
            queue.popleft()
            self._count(-work.rows)
            batch.append(work)
            rows += work.rows
        return batch


def _settle(work: Work, result: Prediction | ServingError) -> None:
    if work.answer.done():
        return  # cancelled while it ran
    if isinstance(result, ServingError):
        work.answer.set_exception(result)
    else:
        work.answer.set_result(result)
