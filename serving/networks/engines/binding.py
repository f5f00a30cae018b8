"""Networks on a device: rows go there once for all of them, and every batch size has its fixed addresses.

The host buffer is pinned, so that the device reads it itself. Nothing is allocated while requests are answered.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from serving.networks.engines.buckets import fitting
from serving.networks.engines.call import Feeds


class Staging:
    """Rows of one shape on their way to the device, shared by all networks that take them.

    sizes: of batches, ascending. device: as ONNX Runtime calls it. pin: fixes a host buffer in memory.
    """

    def __init__(
        self,
        row_shape: tuple[int, ...],
        dtype: np.dtype,
        sizes: Sequence[int],
        device: str,
        pin: Callable[[NDArray[np.generic]], None],
    ) -> None:
        self.sizes = list(sizes)
        self.device = device
        self.lock = threading.Lock()  # a model that warms up beside one that serves
        self.uploads = 0
        self._host: NDArray[np.generic] = np.zeros((self.sizes[-1], *row_shape), dtype)
        pin(self._host)
        self._on_device = {
            size: OrtValue.ortvalue_from_shape_and_type([size, *row_shape], dtype, device) for size in self.sizes
        }
        # Kept, so that no other array can take its identity. Nobody writes into a batch.
        self._last: NDArray[np.generic] | None = None

    def buffer(self, size: int) -> OrtValue:
        return self._on_device[size]

    def put(self, inputs: NDArray[np.generic]) -> int:
        """Copies the rows, filled up with zeros, unless they are the last ones; returns the size. Hold the lock."""
        size = fitting(self.sizes, len(inputs))
        if inputs is not self._last:
            self._host[: len(inputs)] = inputs
            self._host[len(inputs) : size] = np.zeros((), self._host.dtype)
            self._on_device[size].update_inplace(self._host[:size])
            self._last = inputs
            self.uploads += 1
        return size


@dataclass(frozen=True)
class _Plan:
    """What a run of one batch size reads and writes."""

    binding: onnxruntime.IOBinding
    feeds: dict[str, OrtValue]
    output: OrtValue
    options: onnxruntime.RunOptions


class BoundNetwork:
    """A session whose inputs and outputs have their places on the device. cuda_graphs: it was made for them."""

    def __init__(self, session: onnxruntime.InferenceSession, staging: Staging, cuda_graphs: bool = False) -> None:
        self._session = session
        self._staging = staging
        self._cuda_graphs = cuda_graphs
        self._plans: dict[int, _Plan] = {}

    def __call__(self, inputs: NDArray[np.generic], feeds: Feeds) -> NDArray[np.float32]:
        with self._staging.lock:
            size = self._staging.put(inputs)
            plan = self._plans.get(size)
            if plan is None:
                plan = self._plans[size] = self._bind(size)
            for name, value in feeds.items():
                plan.feeds[name].update_inplace(value)
            self._session.run_with_iobinding(plan.binding, plan.options)
            return np.array(plan.output.numpy()[: len(inputs)])

    def _bind(self, size: int) -> _Plan:
        device = self._staging.device
        rows, *others = self._session.get_inputs()
        (logits,) = self._session.get_outputs()
        feeds = {
            value.name: OrtValue.ortvalue_from_shape_and_type(value.shape, _dtype(value.type), device)
            for value in others
        }
        output = OrtValue.ortvalue_from_shape_and_type([size, *logits.shape[1:]], np.float32, device)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(rows.name, self._staging.buffer(size))
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(logits.name, output)
        options = onnxruntime.RunOptions()
        options.log_severity_level = 3
        if self._cuda_graphs:
            # A captured graph replays addresses and shapes: one for each size.
            options.add_run_config_entry("gpu_graph_id", str(size))
        return _Plan(binding, feeds, output, options)


def _dtype(onnx_type: str) -> np.dtype:
    return np.dtype({"tensor(float)": np.float32, "tensor(double)": np.float64}[onnx_type])
