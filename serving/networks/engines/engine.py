"""The interface of all engines: `load` makes a network of a graph and its tensors, `run` answers calls to networks.

A call is one network on some rows. An engine answers as many at once as it has threads, and a call that does not fit
in memory in two halves; what else differs between devices is how a network is loaded.
"""

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from protos.stored_ensemble import Tensors
from serving.networks.cpu import give_way
from serving.networks.skeleton import Skeleton

logger = logging.getLogger(__name__)

# What a graph takes beside rows, by name.
Feeds = Mapping[str, NDArray[np.generic]]
# Rows [B, ...] and feeds to logits [B, C].
Network = Callable[[NDArray[np.generic], Feeds], NDArray[np.float32]]

PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(slots=True, eq=False)  # frozen, it would take three times as long to make
class Call:
    network: Network
    inputs: NDArray[np.generic]  # [B, ...]; calls on the same rows share the array, and a GPU copies it once
    feeds: Feeds = field(default_factory=dict)


class Engine(ABC):
    """name: for logs and metrics. threads: that answer calls, the calling one among them. precision: of arithmetic."""

    def __init__(self, name: str, threads: int, precision: str = "fp32") -> None:
        self.name = name
        self.threads = threads
        self.precision = precision
        self._pool = ThreadPoolExecutor(threads - 1, "engine", give_way) if threads > 1 else None

    @abstractmethod
    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        """The graph with these tensors, ready to run. Raises StartupError. Called from several threads at once."""

    def batch_sizes(self, max_rows: int) -> list[int]:
        """Numbers of rows that must have run once before the first client pays for them."""
        return sorted({1, max_rows})

    def most_rows(self, rows: int) -> int:
        """Of so many rows, how many a network takes at once."""
        return rows

    def memory(self) -> tuple[int, int] | None:
        """Used and free bytes of the device, by everybody; None where it has no memory of its own."""
        return None

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float32]]:
        """The logits of each call, in order. One that fails fails all."""
        results: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(calls)
        waiting = deque(enumerate(calls))

        def work() -> None:
            while True:
                try:
                    i, call = waiting.popleft()
                except IndexError:
                    return
                results[i] = _answer(call)

        helpers = min(self.threads, len(calls)) - 1
        futures = [self._pool.submit(work) for _ in range(helpers)] if self._pool else []
        try:
            work()
        finally:
            for future in futures:
                future.result()
        return results

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def _answer(call: Call) -> NDArray[np.float32]:
    """In halves, and halves of halves, if the whole does not fit in memory. Raises what one row raises."""
    rows = len(call.inputs)
    try:
        return call.network(call.inputs, call.feeds)
    except Exception as error:  # ONNX Runtime's errors share no base class
        if rows == 1 or not is_out_of_memory(error):
            raise
        logger.warning("out of memory, halving the batch rows=%d error=%r", rows, str(error)[:300])
    # Outside of the handler: a traceback would keep what the failed call had allocated.
    halves = (call.inputs[: rows // 2], call.inputs[rows // 2 :])
    return np.concatenate([_answer(replace(call, inputs=half)) for half in halves])


# As ONNX Runtime's arena, CUDA, cuBLAS, cuDNN, TensorRT, OpenVINO and C++ say it. None has an error code in Python.
_OUT_OF_MEMORY = (
    "failed to allocate memory",
    "out of memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "outofmemory",
    "bad_alloc",
    "bad allocation",
)


def is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in _OUT_OF_MEMORY)
