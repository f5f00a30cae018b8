"""Threads that compute, on calls that wait where the test says: no sleeps."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from serving.networks.engines.call import Call, Logits
from serving.networks.engines.lanes import Job, Lanes, Steps

TIMEOUT_S = 30.0
NONE = np.empty((0, 1), np.float32)


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes(2)
    yield made
    made.close()


def call(answer: Callable[[], float]) -> Call:
    return Call(lambda inputs, feeds: np.array([[answer()]], np.float32), NONE)


def offer(lanes: Lanes, steps: Steps[float]) -> "Job[float]":
    job = Job(steps)
    lanes.offer(lambda: job)
    return job


def total(*calls: Call) -> Steps[float]:
    return float(sum(each[0, 0] for each in (yield calls)))


def test_logits_come_in_the_order_of_the_calls_and_each_step_after_the_last(lanes: Lanes) -> None:
    def steps() -> Steps[list[float]]:
        seen: list[Logits] = []
        for first in (0, 10, 20):
            seen += yield [call(lambda value=value: value) for value in range(first, first + 5)]  # type: ignore[misc]
        return [float(logits[0, 0]) for logits in seen]

    job = Job(steps())
    lanes.offer(lambda: job)
    assert job.future.result(TIMEOUT_S) == [*range(5), *range(10, 15), *range(20, 25)]


def test_a_step_without_calls_goes_on_and_one_without_steps_ends(lanes: Lanes) -> None:
    def steps() -> Steps[float]:
        assert (yield []) == []
        return 3.0

    assert offer(lanes, steps()).future.result(TIMEOUT_S) == 3.0


def test_what_waits_begins_while_the_last_call_of_what_runs_is_still_answered(lanes: Lanes) -> None:
    second_began = threading.Event()

    def long() -> float:
        assert second_began.wait(TIMEOUT_S)  # with a barrier between batches it never would be
        return 1.0

    def short() -> float:
        second_began.set()
        return 2.0

    first, second = offer(lanes, total(call(long))), offer(lanes, total(call(short)))
    assert first.future.result(TIMEOUT_S) == 1.0
    assert second.future.result(TIMEOUT_S) == 2.0


def test_calls_of_what_runs_come_before_what_waits() -> None:
    lanes, order, may_begin = Lanes(1), [], threading.Event()

    def noting(*what: object) -> Call:
        return call(lambda: order.append(what) or 0.0)  # type: ignore[func-returns-value]

    def steps(name: str) -> Steps[float]:
        for step in range(2):
            yield [noting(name, step, i) for i in range(2)]
        return 0.0

    offer(lanes, total(call(lambda: float(may_begin.wait(TIMEOUT_S)))))
    jobs = [offer(lanes, steps(name)) for name in "ab"]
    may_begin.set()
    for job in jobs:
        job.future.result(TIMEOUT_S)
    assert order == [(name, step, i) for name in "ab" for step in range(2) for i in range(2)]
    lanes.close()


def test_a_batch_is_taken_as_late_as_a_lane_is_free() -> None:
    lanes, waiting = Lanes(1), [1.0]
    running, may_end = threading.Event(), threading.Event()

    def take() -> "Job[float]":
        taken, waiting[:] = list(waiting), []
        return Job(total(*(call(lambda value=value: value) for value in taken)))  # type: ignore[misc]

    def busy() -> float:
        running.set()
        return float(may_end.wait(TIMEOUT_S))

    offer(lanes, total(call(busy)))
    assert running.wait(TIMEOUT_S)
    taken: list[Job[float]] = []
    lanes.offer(lambda: taken.append(take()) or taken[0])  # type: ignore[func-returns-value]
    waiting.append(2.0)  # comes after the offer
    may_end.set()
    lanes.close()
    assert taken[0].future.result(0) == 3.0


@pytest.mark.parametrize("count", [1, 3])
def test_a_call_that_fails_fails_the_step_once_all_its_calls_have_ended(lanes: Lanes, count: int) -> None:
    answered: list[int] = []

    def fail() -> float:
        raise ValueError("no such kernel")

    def steps() -> Steps[float]:
        with pytest.raises(ValueError, match="no such kernel"):
            yield [call(fail), *(call(lambda i=i: answered.append(i) or 0.0) for i in range(count))]  # type: ignore[func-returns-value, misc]
        assert sorted(answered) == list(range(count))
        (logits,) = yield [call(lambda: 5.0)]
        return float(logits[0, 0])

    assert offer(lanes, steps()).future.result(TIMEOUT_S) == 5.0


def test_steps_that_raise_are_told_and_the_lanes_go_on(lanes: Lanes) -> None:
    def steps() -> Steps[float]:
        yield [call(lambda: 0.0)]
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        offer(lanes, steps()).future.result(TIMEOUT_S)
    assert offer(lanes, total(call(lambda: 1.0))).future.result(TIMEOUT_S) == 1.0


def test_an_offer_with_nothing_to_begin_is_passed_over(lanes: Lanes) -> None:
    lanes.offer(lambda: None)
    assert offer(lanes, total(call(lambda: 1.0))).future.result(TIMEOUT_S) == 1.0


def test_closing_finishes_what_was_offered() -> None:
    lanes = Lanes(2)
    jobs = [offer(lanes, total(*(call(lambda: 1.0) for _ in range(4)))) for _ in range(50)]
    lanes.close()
    assert [job.future.result(0) for job in jobs] == [4.0] * 50
