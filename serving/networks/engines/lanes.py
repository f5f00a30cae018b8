"""The threads that compute: each takes the next call of what runs and, where there is none, begins what waits.

What runs is a generator: it yields calls, gets their logits, and returns its result. What it does between them runs on
the thread that finished the last call. So no thread waits for another: the next batch begins when the first has nothing
left to do, not when the last has, and under load none is ever woken, which on a virtual machine is the dearest step of
a request (docs/log.md).
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from serving.networks.engines.call import Call, Logits

T = TypeVar("T")
# Calls, whose logits come back in their order. A call that fails fails the step, once all of its calls have ended.
Steps = Generator[Sequence[Call], list[Logits], T]


class Job(Generic[T]):
    """Steps, and the future of what they return."""

    def __init__(self, steps: Steps[T]) -> None:
        self.future: Future[T] = Future()
        self._steps = steps
        self._logits: Any = None  # what a generator is begun with
        self._error: Exception | None = None
        self.calls: Sequence[Call] = ()
        self.left = 0  # of the calls, those that have not ended

    def advance(self) -> bool:
        """To the next calls; False if there are none any more."""
        try:
            error, self._error = self._error, None
            self.calls = self._steps.throw(error) if error is not None else self._steps.send(self._logits)
        except StopIteration as end:
            self.future.set_result(end.value)
            return False
        except BaseException as error:
            self.future.set_exception(error)
            return False
        self.left = len(self.calls)
        self._logits = [None] * self.left
        return True

    def answer(self, i: int) -> None:
        try:
            self._logits[i] = self.calls[i].answer()
        except Exception as error:  # ONNX Runtime's errors share no base class
            self._error = error


class Lanes:
    def __init__(self, threads: int) -> None:
        self._changed = threading.Condition()
        self._calls: deque[tuple[Job[Any], int]] = deque()
        self._waiting: deque[Callable[[], Job[Any] | None]] = deque()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name=f"lane-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def offer(self, begin: Callable[[], Job[Any] | None]) -> None:
        """`begin` is called on a lane, once, when those before it have been and a lane has no call left to answer.

        Late, so that a batch has all that came until then. It must not raise.
        """
        with self._changed:
            self._waiting.append(begin)
            self._changed.notify()

    def close(self) -> None:
        """What was offered is finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._waiting or self._closed):
                    self._changed.wait()
                if self._calls:
                    job, i = self._calls.popleft()
                    begin = None
                elif self._waiting:
                    begin = self._waiting.popleft()
                else:
                    return
            if begin is None:
                job.answer(i)
                with self._changed:
                    job.left -= 1
                    ended = not job.left
                if ended:
                    self._advance(job)
            elif (begun := begin()) is not None:
                self._advance(begun)

    def _advance(self, job: Job[Any]) -> None:
        while job.advance():
            if job.calls:
                with self._changed:
                    self._calls.extend((job, i) for i in range(len(job.calls)))
                    self._changed.notify(len(job.calls) - 1)  # this lane takes one itself
                return
