"""Shows how a run is going: live bars on a terminal, plain lines elsewhere (a file, CI, a Job's log)."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Stage(Protocol):
    """What a stage tells: that `done` of its epochs are over, and the last batch's loss."""

    def epoch(self, done: int, loss: float) -> None: ...


class Progress:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)

    @contextmanager
    def stage(self, name: str, epochs: int) -> Iterator[Stage]:
        """A stage of so many epochs; says at its end how long it took."""
        if not self.console.is_terminal:
            yield _Lines(self.console, name, epochs)
            return
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=self.console) as bars:
            yield _Bar(bars, name, epochs)

    @contextmanager
    def counting(self, name: str, count: int, what: str = "networks") -> Iterator[Callable[[int], None]]:
        """So many of something to evaluate; to be told how many are done."""
        if not self.console.is_terminal:
            start = time.monotonic()
            yield lambda done: None
            self.say(f"evaluated={name!r} {what}={count} seconds={time.monotonic() - start:.1f}")
            return
        columns = (
            TextColumn("{task.description:<22}"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn(),
        )  # fmt: skip
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(name, total=count)
            yield lambda done: bars.update(task, completed=done)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


class _Bar:
    def __init__(self, bars: Bars, name: str, epochs: int) -> None:
        self._bars = bars
        self._task = bars.add_task(name, total=epochs, loss="")

    def epoch(self, done: int, loss: float) -> None:
        self._bars.update(self._task, completed=done, loss=f"{loss:.4f}")


class _Lines:
    """At most about five lines a stage: a log should tell, not drown."""

    def __init__(self, console: Console, name: str, epochs: int) -> None:
        self._console, self._name, self._epochs = console, name, epochs
        self._every = max(1, epochs // 5)
        self._start = time.monotonic()

    def epoch(self, done: int, loss: float) -> None:
        if done % self._every == 0 or done == self._epochs:
            seconds = time.monotonic() - self._start
            line = f"stage={self._name!r} epoch={done}/{self._epochs} loss={loss:.4f} seconds={seconds:.1f}"
            self._console.print(line, markup=False, soft_wrap=True)
