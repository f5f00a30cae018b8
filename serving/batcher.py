"""The one bounded queue: the next batch forms while the last one runs.

No timer: a lone request runs at once, and the longer a batch takes, the more rows the next one has. Rows are
counted, not requests. An urgent request is taken as if it had come earlier, so it overtakes, and nobody waits forever.
The event loop fills the queue, and a lane that has nothing else to do takes the next batch from it; batchers that share
an engine's lanes take turns, a batch each.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serving.errors import DeadlineExceeded, Overloaded, ServingError
from serving.networks.engines.lanes import Job, Lanes, Steps
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


# On at least one work; an exception in place of a prediction fails that work alone.
Execute = Callable[[Sequence[Work]], Steps[Sequence[Prediction | ServingError]]]


class Batcher:
    def __init__(
        self,
        execute: Execute,
        lanes: Lanes,
        max_batch_rows: int,
        max_queue_rows: int,
        metrics: ModelMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._execute = execute
        self._lanes = lanes
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        metrics.queue_limit_rows.set(max_queue_rows)
        self._clock = clock  # monotonic: the wall clock can step back
        self._loop = asyncio.get_running_loop()
        # Never done by itself; if it is, by an error of ours, nothing will be answered any more.
        self.failure: asyncio.Future[None] = self._loop.create_future()
        self._lock = threading.Lock()  # for what follows, which the event loop fills and lanes empty
        self._queues: dict[int, deque[Work]] = {level: deque() for level in range(1, LAST_PRIORITY + 1)}  # by priority
        self._queued_rows = 0
        self._offered = False  # a lane will take the next batch
        self._running: set[Future[Sequence[Prediction | ServingError]]] = set()

    async def stop(self) -> None:
        """Call once nothing waits any more; batches that run are finished."""
        self.failure.cancel()
        with self._lock:
            running = [asyncio.wrap_future(future) for future in self._running]
        await asyncio.gather(*running, return_exceptions=True)

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
        answer: asyncio.Future[Prediction] = self._loop.create_future()
        work = Work(inputs, choice, deadline, answer, self._clock(), [] if stages is None else stages, priority)
        with self._lock:
            self._queues[priority].append(work)
            self._count(rows)
            offered, self._offered = self._offered, True
        if not offered:
            self._lanes.offer(self._take)
        try:
            return await answer
        except asyncio.CancelledError:
            self._drop(work)
            raise

    def _drop(self, work: Work) -> None:
        with self._lock:
            try:
                self._queues[work.priority].remove(work)
            except ValueError:
                return  # it runs already; the rest of its batch must not suffer
            self._count(-work.rows)
        self._metrics.rejected["cancelled"].inc()

    def _count(self, rows: int) -> None:
        self._queued_rows += rows
        self._metrics.queue_rows.inc(rows)

    def _take(self) -> Job[Sequence[Prediction | ServingError]] | None:
        """On a lane that has nothing else to do: the next batch. Others wait behind what other models have waiting."""
        try:
            with self._lock:
                batch, expired = self._next_batch()
                offered = self._offered = self._queued_rows > 0
                job = Job(self._answer(batch)) if batch else None
                if job is not None:
                    self._running.add(job.future)
            if offered:
                self._lanes.offer(self._take)
            now = self._clock()
            for work in expired:
                self._metrics.rejected["expired"].inc()
                error = DeadlineExceeded(f"the deadline passed after {now - work.arrived:.3f} s in the queue")
                self._loop.call_soon_threadsafe(_settle, work, error)
            if job is None:
                return None
            for work in batch:
                self._metrics.queue_seconds.observe(now - work.arrived)
                work.stages.append(Stage("queue", work.arrived, now, work.rows))
            self._metrics.batch_rows.observe(sum(work.rows for work in batch))
            job.future.add_done_callback(lambda future: self._loop.call_soon_threadsafe(self._end, batch, future))
            return job
        except Exception as error:
            self._loop.call_soon_threadsafe(self._fail, error)
            return None

    def _end(self, batch: Sequence[Work], future: "Future[Sequence[Prediction | ServingError]]") -> None:
        with self._lock:
            self._running.remove(future)
        try:
            results = future.result()
        except Exception as error:
            self._fail(error)
            return
        for work, result in zip(batch, results, strict=True):
            _settle(work, result)

    def _fail(self, error: Exception) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)

    def _answer(self, batch: Sequence[Work]) -> Steps[Sequence[Prediction | ServingError]]:
        """If a batch fails, each of its requests runs alone: one must not take down its neighbours."""
        try:
            return (yield from self._execute(batch))
        except Exception:
            if len(batch) == 1:
                logger.exception("request failed rows=%d", batch[0].rows)
                return [ServingError("internal error")]
            logger.warning("batch failed and its requests run one by one requests=%d", len(batch), exc_info=True)
        answers: list[Prediction | ServingError] = []
        for work in batch:
            answers += yield from self._answer([work])
        return answers

    def _next_batch(self) -> tuple[list[Work], list[Work]]:
        """Those whose turn is first, as many as fit; and what has expired, which leaves the queue unrun."""
        batch: list[Work] = []
        expired: list[Work] = []
        rows = 0
        while waiting := [queue for queue in self._queues.values() if queue]:
            queue = min(waiting, key=lambda queue: queue[0].turn)
            work = queue[0]
            is_late = work.deadline is not None and self._clock() >= work.deadline
            if not is_late:
                if rows + work.rows > self._max_batch_rows:
                    break
                rows += work.rows
            queue.popleft()
            self._count(-work.rows)
            (expired if is_late else batch).append(work)
        return batch, expired


def _settle(work: Work, result: Prediction | ServingError) -> None:
    if work.answer.done():
        return  # cancelled while it ran
    if isinstance(result, ServingError):
        work.answer.set_exception(result)
    else:
        work.answer.set_result(result)
