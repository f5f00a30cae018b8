"""Requests without a pause, from threads, each answer compared; for tests of what must not be noticed."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Load:
    """Calls `ask` from so many threads until the end of the block; it raises for a failed or a wrong answer."""

    def __init__(self, ask: Callable[[], None], threads: int = 4) -> None:
        self._ask = ask
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._grown = threading.Condition(self._lock)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        self.answers = 0
        self.failures: list[str] = []

    def wait_for(self, answers: int, timeout_s: float = 60.0) -> None:
        """Until so many more have come."""
        with self._grown:
            goal = self.answers + answers
            assert self._grown.wait_for(lambda: self.answers >= goal or len(self.failures) > 0, timeout_s)

    def _work(self) -> None:
        while not self._end.is_set():
            failure = None
            try:
                self._ask()
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
            with self._grown:
                self.answers += failure is None
                if failure is not None:
                    self.failures.append(failure)
                self._grown.notify_all()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
