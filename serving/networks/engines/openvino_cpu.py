"""OpenVINO on the CPU: bf16 where the CPU has it (AMX, AVX-512 BF16). Optional: `pip install 'thalweg[openvino]'`."""

from collections.abc import Callable

import numpy as np
import openvino
from numpy.typing import NDArray

from protos.stored_ensemble import Tensors
from serving.errors import StartupError
from serving.networks.engines.call import Feeds, Network
from serving.networks.engines.engine import Engine
from serving.networks.skeleton import Skeleton

_NAMES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class OpenVinoCpu(Engine):
    """As with ONNX Runtime, a network runs on the thread that calls it, and as many calls at once as there are threads.

    OpenVINO has that for models of one stream and one thread alone: with more streams every call is handed to a thread
    of the model's own, eight models' streams are pinned to the same cores, and half of the machine waits.
    """

    def __init__(self, threads: int, precision: str) -> None:
        super().__init__("openvino-cpu", threads, precision)
        self._core = openvino.Core()
        # Left to itself it takes bf16 wherever the CPU has it.
        self._options = {"INFERENCE_PRECISION_HINT": _NAMES[precision], "ENABLE_CPU_PINNING": "NO"}
        _make_the_first_call(self._core)

    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        # What takes feeds is shared by members: all threads call it, and a copy for each would hold its weights again.
        shared = len(skeleton.model.graph.input) > 1
        streams = str(self.threads if shared else 1)
        options = self._options | {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams}
        try:
            model = self._core.read_model(skeleton.filled(tensors).SerializeToString())
            compiled = self._core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise StartupError(f"OpenVINO cannot load the network: {str(error).strip().splitlines()[-1]}") from error
        # It runs what it lacks in another precision, in silence.
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != _NAMES[self.precision]:
            raise StartupError(f"--precision {self.precision}: on this CPU OpenVINO computes in {used}")

        def another() -> openvino.InferRequest:
            return (compiled if shared else self._core.compile_model(model, "CPU", options)).create_infer_request()

        return _Network(skeleton.input_name, compiled.create_infer_request(), another)


class _Network:
    """another: a request for a thread that finds all others at work. Calls on one compiled model of one stream wait for
    each other, so a member is compiled again: where fewer members than threads are asked, and once a thread at most.
    """

    def __init__(
        self, input_name: str, request: openvino.InferRequest, another: Callable[[], openvino.InferRequest]
    ) -> None:
        self._input_name = input_name
        self._another = another
        self._idle = [request]

    def __call__(self, inputs: NDArray[np.generic], feeds: Feeds) -> NDArray[np.float32]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._another()
        try:
            return np.asarray(request.infer({self._input_name: inputs, **feeds})["logits"])
        finally:
            self._idle.append(request)


def _make_the_first_call(core: openvino.Core) -> None:
    """Two first calls at once may hang a process for good: OpenVINO's Python part makes tables of types in the first,
    one thread holding the GIL and waiting for the lock of such a table, the other the reverse.
    """
    rows = openvino.opset13.parameter([1], np.float32)
    model = openvino.Model([openvino.opset13.relu(rows)], [rows])
    core.compile_model(model, "CPU").create_infer_request().infer({0: np.zeros(1, np.float32)})
