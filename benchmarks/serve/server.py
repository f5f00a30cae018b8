"""A contender's server from its start to its end, and whether it answers rightly."""

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve import client, ensemble
from benchmarks.serve.contenders import ROOT, Contender
from benchmarks.serve.peers import Body
from benchmarks.serve.processes import Tree

READY_SECONDS = 180.0
EXIT_SECONDS = 30.0
ROWS = 32


class WrongAnswer(Exception):
    """An answer that is not the reference's: nothing that was measured counts."""


class Server:
    """Raises RuntimeError if it does not answer in time, WrongAnswer if it does and is wrong."""

    def __init__(self, contender: Contender, models: Path, log: Path) -> None:
        self.contender = contender
        self._models = models
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        start = time.perf_counter()
        with log.open("w") as output:
            self.process = subprocess.Popen(
                contender.command(models.absolute(), port),
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.tree = Tree(self.process.pid)
        try:
            self._wait(start + READY_SECONDS)
        except BaseException:
            self._end()
            raise
        self.ready_s = time.perf_counter() - start  # to the first right answer

    def body(self, rows: int) -> Body:
        """The request that is timed."""
        return self.contender.request(_rows()[:rows])

    def verify(self, parallel: int, rows: int) -> bytes:
        """So many requests at once, of different rows, against the reference. Returns the answer to `body(rows)`."""
        parts = [slice(i * rows, (i + 1) * rows) for i in range(parallel)]
        answers = asyncio.run(self._ask([self.contender.request(_rows()[part]) for part in parts]))
        for part, answer in zip(parts, answers, strict=True):
            self.check(answer, part)
        return answers[0]

    def check(self, answer: bytes, part: slice) -> None:
        """answer: to the request of these rows."""
        found, expected = self.contender.probabilities(answer), _reference(self._models)[part]
        if found.shape != expected.shape:
            raise WrongAnswer(f"{self.contender.name} answered {list(found.shape)}; expected {list(expected.shape)}")
        difference = np.nan_to_num(np.abs(found - expected), nan=np.inf)
        if difference.max() > self.contender.tolerance:
            row = int(difference.max(axis=1).argmax())
            raise WrongAnswer(
                f"{self.contender.name} gave row {part.start + row} the probabilities {found[row].round(5).tolist()}; "
                f"expected {expected[row].round(5).tolist()} within {self.contender.tolerance:g}"
            )

    async def _ask(self, bodies: list[Body]) -> list[bytes]:
        async with client.connect(self.address, self.contender.protocol) as call:
            return await asyncio.gather(*map(call, bodies))

    def _wait(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.contender.name} ended with {self.process.returncode}: {self._last_words()}")
            with contextlib.suppress(client.Failed):
                self.verify(1, 1)
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.contender.name} gave no answer in {READY_SECONDS:.0f} s: {self._last_words()}")

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-2000:].strip()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(EXIT_SECONDS)
        self.tree.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _rows() -> NDArray[np.uint8]:
    return ensemble.rows(ROWS)


@lru_cache
def _reference(models: Path) -> NDArray[np.float64]:
    return ensemble.reference(models, _rows())
