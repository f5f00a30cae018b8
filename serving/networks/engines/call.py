"""One network on some rows; in halves, and halves of halves, if the whole does not fit in memory."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# What a graph takes beside rows, by name.
Feeds = Mapping[str, NDArray[np.generic]]
Logits = NDArray[np.float32]
# Rows [B, ...] and feeds to logits [B, C]; of a group of members [their number, B, C].
Network = Callable[[NDArray[np.generic], Feeds], Logits]


@dataclass(slots=True, eq=False)  # frozen, it would take three times as long to make
class Call:
    network: Network
    inputs: NDArray[np.generic]  # [B, ...]; calls on the same rows share the array, and a GPU copies it once
    feeds: Feeds = field(default_factory=dict)

    def answer(self) -> Logits:
        """Logits. Raises what one row raises."""
        return _answer(self.network, self.inputs, self.feeds)


def _answer(network: Network, inputs: NDArray[np.generic], feeds: Feeds) -> Logits:
    rows = len(inputs)
    try:
        return network(inputs, feeds)
    except Exception as error:  # ONNX Runtime's errors share no base class
        if rows == 1 or not is_out_of_memory(error):
            raise
        logger.warning("out of memory, halving the batch rows=%d error=%r", rows, str(error)[:300])
    # Outside of the handler: a traceback would keep what the failed call had allocated.
    halves = (inputs[: rows // 2], inputs[rows // 2 :])
    return np.concatenate([_answer(network, half, feeds) for half in halves], axis=-2)


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
