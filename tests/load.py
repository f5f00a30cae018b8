"""Requests without a pause, from threads, each answer compared; for tests of what must not be noticed."""

import itertools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.client import Client
from tests import tiny_ensemble

ROWS = np.random.default_rng(0).normal(size=(8, 4)).astype("<f4")
PROBS = tiny_ensemble.pooled_probs(ROWS)


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


def asking(client: Client) -> Callable[[], None]:
    rows = itertools.cycle(range(len(ROWS)))

    def ask() -> None:
        row = next(rows)
        np.testing.assert_allclose(client.predict(ROWS[row : row + 1]).probs, PROBS[row : row + 1], atol=1e-6)

    return ask


def asking_once(channel: grpc.Channel) -> Callable[[], None]:
    """A plain client: no retries, no round robin, no health checks."""
    rows, stub = itertools.cycle(range(len(ROWS))), GRPCInferenceServiceStub(channel)

    def ask() -> None:
        row = next(rows)
        request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS[row].tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
        probs = np.frombuffer(stub.ModelInfer(request, timeout=30).raw_output_contents[0], "<f4")
        np.testing.assert_allclose(probs, PROBS[row], atol=1e-6)

    return ask
