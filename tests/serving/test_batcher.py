"""The queue, with a fake executor that waits where the test says and a clock that the test moves: no sleeps."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from serving.batcher import DEFAULT_PRIORITY, LAST_PRIORITY, PRIORITY_SECONDS, Batcher, Work
from serving.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServingError
from serving.networks.engines.lanes import Lanes, Steps
from serving.policy import Choice, Policy
from serving.prediction import Prediction
from serving.telemetry.metrics import Metrics

MEAN = Choice(Policy.MEAN)
TIMEOUT_S = 30.0


def rows(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def echo(work: Work) -> Prediction:
    values = work.inputs[:, 0]
    return Prediction(work.inputs, values, values, work.inputs[:, None], np.ones(work.rows, np.int32))


class Engine:
    """Records each batch as it begins; runs on when told."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.began = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.poison: float | None = None

    def __call__(self, batch: Sequence[Work]) -> Steps[list[Prediction | ServingError]]:
        self.batches.append([float(value) for work in batch for value in work.inputs[:, 0]])
        self.began.release()
        assert self.go_on.acquire(timeout=TIMEOUT_S)
        if self.failure is not None:
            raise self.failure
        if self.poison in self.batches[-1]:
            raise RuntimeError("poison")
        yield []
        return [InvalidRequest("bad") if (work.inputs == -1).any() else echo(work) for work in batch]

    async def wait_until_running(self) -> None:
        assert await asyncio.to_thread(self.began.acquire, True, TIMEOUT_S)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    def __init__(self) -> None:
        self.engine, self.clock, self.metrics = Engine(), Clock(), Metrics()
        self.model = self.metrics.model("tiny", "1", ["a", "b"], 1)
        self.lanes = Lanes(1)
        self.batcher = Batcher(self.engine, self.lanes, 4, 8, self.model, self.clock)
        self.tasks: list[asyncio.Task[Prediction]] = []

    async def submit(
        self, *values: float, deadline: float | None = None, priority: int = DEFAULT_PRIORITY
    ) -> "asyncio.Task[Prediction]":
        """Queued when this returns."""
        task = asyncio.create_task(self.batcher.submit(rows(*values), MEAN, deadline, priority=priority))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def occupy(self) -> "asyncio.Task[Prediction]":
        """A batch runs, so that what follows has to queue."""
        task = await self.submit(0.0)
        await self.engine.wait_until_running()
        return task

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"model": "tiny", "version": "1"} | labels)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    for _ in range(100):
        bench.engine.go_on.release()
    await asyncio.gather(*bench.tasks, return_exceptions=True)
    await bench.batcher.stop()
    bench.lanes.close()


async def test_a_lone_request_runs_at_once(bench: Bench) -> None:
    task = await bench.occupy()
    assert bench.engine.batches == [[0.0]]
    bench.engine.go_on.release()
    assert (await task).probs_BC.tolist() == [[0.0]]


async def test_the_next_batch_forms_while_the_last_one_runs(bench: Bench) -> None:
    await bench.occupy()
    tasks = [await bench.submit(value) for value in (1.0, 2.0, 3.0)]
    bench.engine.go_on.release()
    await bench.engine.wait_until_running()
    assert bench.engine.batches == [[0.0], [1.0, 2.0, 3.0]]
    bench.engine.go_on.release()
    assert [(await task).probs_BC[0, 0] for task in tasks] == [1.0, 2.0, 3.0]


async def test_batches_count_rows_and_keep_the_order(bench: Bench) -> None:
    await bench.occupy()
    for values in ((1.0, 2.0, 3.0), (4.0, 5.0), (6.0,)):
        await bench.submit(*values)
    for _ in range(3):
        bench.engine.go_on.release()
    await asyncio.gather(*bench.tasks)
    assert bench.engine.batches == [[0.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize("cancelled", range(4))
@pytest.mark.parametrize("running", [False, True])
async def test_cancelling_one_of_four_leaves_the_other_three_answered(
    bench: Bench, cancelled: int, running: bool
) -> None:
    await bench.occupy()
    tasks = [await bench.submit(float(value)) for value in range(1, 5)]
    if running:
        bench.engine.go_on.release()
        await bench.engine.wait_until_running()
    tasks[cancelled].cancel()
    await asyncio.gather(tasks[cancelled], return_exceptions=True)
    bench.engine.go_on.release()
    bench.engine.go_on.release()
    for i, task in enumerate(tasks):
        if i != cancelled:
            assert (await asyncio.wait_for(task, TIMEOUT_S)).probs_BC[0, 0] == i + 1
    assert tasks[cancelled].cancelled()
    ran = bench.engine.batches[1]
    assert (cancelled + 1.0 in ran) is running  # one that still waited is not run


async def test_a_cancelled_request_makes_room_in_the_queue(bench: Bench) -> None:
    await bench.occupy()
    first = await bench.submit(1.0, 2.0, 3.0, 4.0)
    await bench.submit(5.0, 6.0, 7.0, 8.0)
    assert bench.metric("ensemble_queue_rows") == 8
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert bench.metric("ensemble_queue_rows") == 4
    await bench.submit(9.0, 10.0, 11.0, 12.0)
    assert bench.metric("ensemble_queue_rows") == 8


async def test_a_full_queue_rejects_without_waiting(bench: Bench) -> None:
    await bench.occupy()
    await bench.submit(1.0, 2.0, 3.0, 4.0)
    await bench.submit(5.0, 6.0, 7.0)
    refused = await bench.submit(8.0, 9.0)
    with pytest.raises(Overloaded, match="2 rows arrived with 7 waiting; the queue holds 8"):
        await refused
    assert bench.engine.batches == [[0.0]]  # nothing has run meanwhile
    assert bench.metric("ensemble_rejected_total", reason="queue_full") == 1
    fits = await bench.submit(8.0)
    assert not fits.done()


async def test_urgent_requests_overtake_and_equals_keep_their_order(bench: Bench) -> None:
    await bench.occupy()
    for value, priority in ((1.0, 3), (2.0, 2), (3.0, 1), (4.0, 2), (5.0, 1), (6.0, 3)):
        await bench.submit(value, priority=priority)
        bench.clock.now += 0.001
    for _ in range(3):
        bench.engine.go_on.release()
    await asyncio.gather(*bench.tasks)
    assert bench.engine.batches[1:] == [[3.0, 5.0, 2.0, 4.0], [1.0, 6.0]]


async def test_the_least_urgent_request_is_run_although_urgent_ones_never_cease(bench: Bench) -> None:
    await bench.occupy()
    patient = await bench.submit(-5.0, -5.0, -5.0, priority=LAST_PRIORITY)
    step_s = 0.1
    urgent = 0
    while not patient.done():
        for _ in range(2):  # always more of them than a batch takes
            if bench.batcher._queued_rows <= 4:
                await bench.submit(1.0, 1.0, 1.0, 1.0, priority=1)
        bench.clock.now += step_s
        bench.engine.go_on.release()
        await bench.engine.wait_until_running()
        urgent += 1
        assert urgent < 100
    waited_s = urgent * step_s
    assert (LAST_PRIORITY - 1) * PRIORITY_SECONDS <= waited_s <= (LAST_PRIORITY - 1) * PRIORITY_SECONDS + 5 * step_s


async def test_a_cancelled_request_of_any_priority_leaves_the_queue(bench: Bench) -> None:
    await bench.occupy()
    for priority in range(1, LAST_PRIORITY + 1):
        task = await bench.submit(1.0, priority=priority)
        assert bench.metric("ensemble_queue_rows") == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert bench.metric("ensemble_queue_rows") == 0


async def test_an_expired_request_is_never_run(bench: Bench) -> None:
    await bench.occupy()
    expired = await bench.submit(1.0, deadline=105.0)
    alive = await bench.submit(2.0, deadline=106.0)
    bench.clock.now = 105.5
    bench.engine.go_on.release()
    with pytest.raises(DeadlineExceeded, match=r"after 5\.500 s in the queue"):
        await expired
    bench.engine.go_on.release()
    assert (await alive).probs_BC[0, 0] == 2.0
    assert bench.engine.batches == [[0.0], [2.0]]
    assert bench.metric("ensemble_rejected_total", reason="expired") == 1
    assert bench.metric("ensemble_queue_rows") == 0


async def test_one_bad_request_fails_alone(bench: Bench) -> None:
    await bench.occupy()
    tasks = [await bench.submit(value) for value in (1.0, -1.0, 3.0)]
    bench.engine.go_on.release()
    bench.engine.go_on.release()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Prediction, InvalidRequest, Prediction]


async def test_a_request_that_breaks_its_batch_fails_alone(bench: Bench) -> None:
    await bench.occupy()
    bench.engine.poison = 2.0
    tasks = [await bench.submit(value) for value in (1.0, 2.0, 3.0)]
    for _ in range(5):
        bench.engine.go_on.release()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Prediction, ServingError, Prediction]
    assert bench.engine.batches == [[0.0], [1.0, 2.0, 3.0], [1.0], [2.0], [3.0]]


async def test_a_request_that_fails_is_told_without_detail_and_the_next_one_runs(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.engine.failure = RuntimeError("secret")
    task = await bench.occupy()
    bench.engine.go_on.release()
    with pytest.raises(ServingError, match=r"^internal error$"):
        await task
    assert "secret" in caplog.text
    bench.engine.failure = None
    task = await bench.occupy()
    bench.engine.go_on.release()
    assert (await task).probs_BC[0, 0] == 0.0
