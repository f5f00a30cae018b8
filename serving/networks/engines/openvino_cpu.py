"""OpenVINO on the CPU: bf16 where the CPU has it (AMX, AVX-512 BF16). Optional: `pip install 'thalweg[openvino]'`."""

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import openvino
from numpy.typing import NDArray

from protos.stored_ensemble import Tensors
from serving.errors import StartupError
from serving.networks.engines.call import Feeds, Network
from serving.networks.engines.engine import Engine
from serving.networks.skeleton import Skeleton

_NAMES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
# Compiled for a number of rows, a small network takes 12 to 30 % less time than compiled for any, and half where the
# number changes from call to call (docs/log.md). Beyond the largest a row costs the same.
FIXED_ROWS = (16, 12, 8, 4, 3, 2, 1)


class OpenVinoCpu(Engine):
    """As with ONNX Runtime, a network runs on the thread that calls it, and as many calls at once as there are threads.

    OpenVINO has that for models of one stream and one thread alone: with more streams every call is handed to a thread
    of the model's own, eight models' streams are pinned to the same cores, and half of the machine waits.
    """

    fused_members = 16  # each is compiled for each of FIXED_ROWS, 0.1 s a time
    fused_parameters = 2**21  # twice as many gain 4 % from eight rows on, and take twice as much memory

    def __init__(self, threads: int, precision: str) -> None:
        super().__init__("openvino-cpu", threads, precision)
        self._core = openvino.Core()
        # Left to itself it takes bf16 wherever the CPU has it.
        self._options = {"INFERENCE_PRECISION_HINT": _NAMES[precision], "ENABLE_CPU_PINNING": "NO"}
        _make_the_first_call(self._core)

    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        # What takes feeds is shared by members: all threads call it, and a copy for each would hold its weights again.
        shared = len(skeleton.model.graph.input) > 1
        streams = self.threads if shared else 1
        model = self._read(skeleton.filled(tensors).SerializeToString())
        compiled = self._compile(model, streams)

        def another() -> openvino.InferRequest:
            return (compiled if shared else self._compile(model, streams)).create_infer_request()

        return _Network(skeleton.input_name, compiled.create_infer_request(), another)

    def load_fused(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        """Compiled for each of FIXED_ROWS."""
        filled = skeleton.filled(tensors).SerializeToString()
        fixed = {}
        for rows in FIXED_ROWS:
            model = self._read(filled)
            shape = model.input(skeleton.input_name).partial_shape
            shape[0] = rows
            model.reshape({skeleton.input_name: shape})
            fixed[rows] = _Fixed(skeleton.input_name, self._compile(model, streams=1).create_infer_request())
        return _InPieces(fixed)

    def _read(self, model: bytes) -> openvino.Model:
        try:
            return self._core.read_model(model)
        except RuntimeError as error:
            raise _cannot_load(error) from error

    def _compile(self, model: openvino.Model, streams: int) -> openvino.CompiledModel:
        options = self._options | {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(streams)}
        try:
            compiled = self._core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise _cannot_load(error) from error
        # It runs what it lacks in another precision, in silence.
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != _NAMES[self.precision]:
            raise StartupError(f"--precision {self.precision}: on this CPU OpenVINO computes in {used}")
        return compiled


def _cannot_load(error: RuntimeError) -> StartupError:
    return StartupError(f"OpenVINO cannot load the network: {str(error).strip().splitlines()[-1]}")


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


class _Fixed:
    """Of a fixed number of rows. Two threads take turns: members of a group are asked by one lane at a time, mostly."""

    def __init__(self, input_name: str, request: openvino.InferRequest) -> None:
        self._input_name = input_name
        self._request = request
        self._one_at_a_time = threading.Lock()

    def __call__(self, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        with self._one_at_a_time:
            return np.asarray(self._request.infer({self._input_name: inputs})["logits"])


class _InPieces:
    def __init__(self, fixed: Mapping[int, _Fixed]) -> None:
        self._fixed = fixed

    def __call__(self, inputs: NDArray[np.generic], feeds: Feeds) -> NDArray[np.float32]:
        answers, start = [], 0
        for rows in pieces(len(inputs)):
            answers.append(self._fixed[rows](inputs[start : start + rows]))
            start += rows
        return answers[0] if len(answers) == 1 else np.concatenate(answers, axis=-2)


def pieces(rows: int) -> Iterator[int]:
    """Of FIXED_ROWS, so many as hold these. None is padded: a row that nobody wants costs more than a call."""
    while rows:
        piece = next(fixed for fixed in FIXED_ROWS if fixed <= rows)
        yield piece
        rows -= piece


def _make_the_first_call(core: openvino.Core) -> None:
    """Two first calls at once may hang a process for good: OpenVINO's Python part makes tables of types in the first,
    one thread holding the GIL and waiting for the lock of such a table, the other the reverse.
    """
    rows = openvino.opset13.parameter([1], np.float32)
    model = openvino.Model([openvino.opset13.relu(rows)], [rows])
    core.compile_model(model, "CPU").create_infer_request().infer({0: np.zeros(1, np.float32)})
