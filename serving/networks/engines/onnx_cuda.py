"""ONNX Runtime on an NVIDIA GPU, alone or with TensorRT: sessions share one stream and the rows that were copied there.

One thread: two networks at once on one GPU are slower than one after the other (onnxruntime #15202).
"""

import threading
from typing import Any

import onnxruntime

from protos.stored_ensemble import Tensors
from serving.errors import StartupError
from serving.networks.engines import buckets
from serving.networks.engines.binding import BoundNetwork, Staging
from serving.networks.engines.call import Network
from serving.networks.engines.cuda_runtime import CudaRuntime
from serving.networks.engines.engine import Engine
from serving.networks.engines.half import to_float16
from serving.networks.engines.onnx_cpu import CPU, open_session, session_options
from serving.networks.skeleton import Skeleton

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


class OnnxCuda(Engine):
    """precision: fp32, fp16, with TensorRT bf16. cuda_graphs: replay each batch size's kernels in one launch.

    runtime and device are what a test on a CPU replaces.
    """

    def __init__(
        self,
        precision: str,
        max_batch_rows: int,
        tensorrt: bool = False,
        cuda_graphs: bool = False,
        runtime: CudaRuntime | None = None,
        device: str = "cuda",
    ) -> None:
        super().__init__("onnxruntime-tensorrt" if tensorrt else "onnxruntime-cuda", threads=1, precision=precision)
        if precision == "bf16" and not tensorrt:
            # In bf16 its CUDA kernels have no BatchNormalization (#19502), and a convolution is refused (#25740).
            raise StartupError(
                "--precision bf16 on a GPU needs --engine tensorrt; ONNX Runtime's CUDA provider has fp16"
            )
        if runtime is None:
            onnxruntime.preload_dlls()
        self._sizes = buckets.sizes(max_batch_rows)
        self._tensorrt = tensorrt
        self._cuda_graphs = cuda_graphs
        self.runtime = runtime or CudaRuntime()
        self._stream = self.runtime.stream()
        self._device = device
        self._making = threading.Lock()  # members are loaded by several threads
        self._stagings: dict[tuple[tuple[int, ...], str], Staging] = {}

    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        model, beside = skeleton.data, tensors
        if self._tensorrt:  # it parses the graph anew, and should find everything in it
            model, beside = skeleton.filled(tensors).SerializeToString(), {}
        elif self.precision == "fp16":
            model, beside = to_float16(skeleton.filled(tensors)).SerializeToString(), {}
        session = open_session(model, beside, session_options(), self.providers())
        return BoundNetwork(session, self._staging(skeleton), self._cuda_graphs)

    def memory(self) -> tuple[int, int]:
        return self.runtime.memory()

    def batch_sizes(self, max_rows: int) -> list[int]:
        # Three times each: a CUDA graph is captured after the first run, and replayed in the third.
        return [size for size in self._sizes if size <= max_rows for _ in range(3 if self._cuda_graphs else 1)]

    def most_rows(self, rows: int) -> int:
        return min(rows, self._sizes[-1])

    def providers(self) -> list[Any]:
        """In the order in which they take nodes; shapes are computed on the CPU."""
        if self._device == "cpu":
            return [CPU]
        cuda = {
            "user_compute_stream": str(self._stream),
            # EXHAUSTIVE, the default, times every algorithm of every convolution of every member in every batch size.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Powers of two, the default, times the number of sessions.
            "arena_extend_strategy": "kSameAsRequested",
            # On by default, and no fp32: it rounds to 10 bits before it multiplies.
            "use_tf32": "0",
            "enable_cuda_graph": "1" if self._cuda_graphs else "0",
        }
        providers: list[Any] = [(CUDA, cuda), CPU]
        if self._tensorrt:
            # Without its cache of engines: that is keyed by the graph, and members differ in weights alone.
            options = {
                "user_compute_stream": str(self._stream),
                "trt_fp16_enable": "1" if self.precision == "fp16" else "0",
                "trt_bf16_enable": "1" if self.precision == "bf16" else "0",
            }
            providers.insert(0, (TENSORRT, options))
        return providers

    def _staging(self, skeleton: Skeleton) -> Staging:
        shape, dtype = skeleton.row_shape, skeleton.row_type
        key = (shape, dtype.str)
        with self._making:
            if key not in self._stagings:
                self._stagings[key] = Staging(shape, dtype, self._sizes, self._device, self.runtime.pin)
            return self._stagings[key]
