"""OpenVINO on the CPU: bf16 where the CPU has it (AMX, AVX-512 BF16). Optional: `pip install 'thalweg[openvino]'`."""

import threading

import numpy as np
import openvino
from numpy.typing import NDArray

from protos.stored_ensemble import Tensors
from serving.errors import StartupError
from serving.networks.engines.engine import Engine, Feeds, Network
from serving.networks.skeleton import Skeleton

_NAMES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class OpenVinoCpu(Engine):
    """As with ONNX Runtime, a network runs on one thread, and as many calls at once as there are threads."""

    def __init__(self, threads: int, precision: str) -> None:
        super().__init__("openvino-cpu", threads, precision)
        self._core = openvino.Core()
        # Left to itself it takes bf16 wherever the CPU has it.
        self._options = {
            "INFERENCE_PRECISION_HINT": _NAMES[precision],
            "NUM_STREAMS": str(threads),
            "INFERENCE_NUM_THREADS": str(threads),
        }

    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        try:
            model = self._core.read_model(skeleton.filled(tensors).SerializeToString())
            compiled = self._core.compile_model(model, "CPU", self._options)
        except RuntimeError as error:
            raise StartupError(f"OpenVINO cannot load the network: {str(error).strip().splitlines()[-1]}") from error
        # It runs what it lacks in another precision, in silence.
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != _NAMES[self.precision]:
            raise StartupError(f"--precision {self.precision}: on this CPU OpenVINO computes in {used}")
        rows = skeleton.input_name
        requests = threading.local()  # a request's buffers belong to one call at a time

        def run(inputs: NDArray[np.generic], feeds: Feeds) -> NDArray[np.float32]:
            if not hasattr(requests, "own"):
                requests.own = compiled.create_infer_request()
            return np.array(requests.own.infer({rows: inputs, **feeds})["logits"])

        return run
