"""Validates: from the wire to arrays and a choice of members, or InvalidRequest. Checked here once, then trusted."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.graph import DATATYPES
from protos.open_inference_grpc_pb2 import InferParameter, ModelInferRequest
from serving.batcher import DEFAULT_PRIORITY, LAST_PRIORITY
from serving.bytes_tensor import unpack
from serving.conformal import DEFAULT_LEVEL
from serving.ensemble import Ensemble
from serving.errors import InvalidRequest
from serving.networks.curve import NoCurve
from serving.outputs import OUTPUTS, Disclosure
from serving.pictures import takes_pictures
from serving.policy import Choice, Policy

CLASSIFIED = ("probs",)  # outputs with a column a class
INT64_MAX = 2**63 - 1
_DECIMAL = re.compile(r"[01]?\.[0-9]{1,12}")

# The protocol's own, which other servers act on: accepted, and without effect here but for `timeout` and `priority`.
_RESERVED = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")
_OURS = ("policy", "members", "level")
# The field of typed contents that each datatype has; FP16 and BF16 have none.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}

_WIRE_TYPES = {
    "bool_contents": np.bool_,
    "int_contents": np.int32,
    "int64_contents": np.int64,
    "uint_contents": np.uint32,
    "uint64_contents": np.uint64,
    "fp32_contents": np.float32,
    "fp64_contents": np.float64,
}


@dataclass(frozen=True)
class Request:
    inputs: NDArray[np.generic] | None  # [B, ...] as the graph takes it; None: pictures came
    choice: Choice
    outputs: tuple[str, ...]  # in the order of the answer
    timeout_s: float | None  # the client's own limit on the wait in the queue
    pictures: tuple[bytes, ...] = ()  # still encoded, a row each
    classification: Mapping[str, int] = field(default_factory=dict)  # outputs wanted as their k likeliest classes
    priority: int = DEFAULT_PRIORITY
    set_threshold: float = 1.0  # of output `prediction_set`, if it is among the outputs

    @property
    def rows(self) -> int:
        return len(self.pictures) if self.inputs is None else len(self.inputs)


def parse(message: ModelInferRequest, ensemble: Ensemble, max_rows: int, forced_policy: Policy | None) -> Request:
    """Raises InvalidRequest with what arrived and what was expected."""
    parameters = message.parameters
    for name in parameters:
        if name not in _OURS and name not in _RESERVED and not name.startswith("triton_"):
            near = difflib.get_close_matches(name[:100], _OURS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; expected {' or '.join(_OURS)}"
            raise InvalidRequest(f"unknown parameter '{name}'{hint}")
    choice = _choice(parameters, ensemble.member_ids) if forced_policy is None else Choice(forced_policy)
    if choice.policy is Policy.CURVE and isinstance(ensemble.curve, NoCurve):
        raise InvalidRequest(f"policy 'curve': {ensemble.curve}")
    if choice.policy is Policy.CASCADE and ensemble.cascade is None:
        raise InvalidRequest("policy 'cascade' was asked for; the manifest has no cascade")
    outputs = _outputs(message, ensemble.disclosure)
    level = _level(parameters)
    set_threshold = ensemble.conformal.threshold(choice.policy, level) if "prediction_set" in outputs else 1.0
    inputs = _inputs(message, ensemble, max_rows)
    return Request(
        inputs=inputs if isinstance(inputs, np.ndarray) else None,
        choice=dataclasses.replace(choice, energy="energy" in outputs),
        outputs=outputs,
        timeout_s=_timeout(parameters),
        pictures=() if isinstance(inputs, np.ndarray) else inputs,
        classification=_classification(message, len(ensemble.class_labels)),
        priority=_priority(parameters),
        set_threshold=set_threshold,
    )


def _choice(parameters: Mapping[str, InferParameter], member_ids: Sequence[str]) -> Choice:
    default = Policy.MEMBERS if "members" in parameters else Policy.MEAN
    text = _text(parameters, "policy", default)
    if text not in list(Policy):
        raise InvalidRequest(f"unknown policy '{text}'; expected one of {', '.join(Policy)}")
    policy = Policy(text)
    if policy is not Policy.MEMBERS:
        if "members" in parameters:
            raise InvalidRequest(f"parameter 'members' came with policy '{policy}'; expected policy 'members'")
        return Choice(policy)
    if "members" not in parameters:
        raise InvalidRequest("policy 'members' came without parameter 'members'; expected one such as '0,3'")
    parameter = parameters["members"]
    kind = parameter.WhichOneof("parameter_choice")
    text = str(parameter.int64_param) if kind == "int64_param" else _text(parameters, "members", "")
    # Counted before it is split: a text of megabytes must not hold up the event loop.
    if (count := text.count(",") + 1) > len(member_ids):
        raise InvalidRequest(f"parameter 'members' names {count} members; the model has {len(member_ids)}")
    members = tuple(_member(token.strip(), member_ids) for token in text.split(","))
    if len(set(members)) != len(members):
        raise InvalidRequest(f"parameter 'members' is '{text}'; expected each member once")
    return Choice(policy, members)


def _member(token: str, member_ids: Sequence[str]) -> int:
    if token in member_ids:
        return member_ids.index(token)
    # Not int(): it takes '٣', '1_0' and ' +2', and a thousand digits take it a while.
    if token.isascii() and token.isdigit() and len(token) <= 9:
        if int(token) < len(member_ids):
            return int(token)
        raise InvalidRequest(f"member {token} is out of range; expected 0 to {len(member_ids) - 1}")
    raise InvalidRequest(f"unknown member '{token[:80]}'; expected an index, 0 to {len(member_ids) - 1}, or an id")


def _text(parameters: Mapping[str, InferParameter], name: str, default: str) -> str:
    if name not in parameters:
        return default
    kind = parameters[name].WhichOneof("parameter_choice")
    if kind != "string_param":
        raise InvalidRequest(f"parameter '{name}' came as {kind or 'nothing'}; expected string_param")
    return parameters[name].string_param


def _timeout(parameters: Mapping[str, InferParameter]) -> float | None:
    """The protocol's `timeout` is in microseconds; 0 is none."""
    microseconds = _integer(parameters, "timeout", "0 or more microseconds")
    return microseconds / 1e6 if microseconds else None


def _priority(parameters: Mapping[str, InferParameter]) -> int:
    """As Triton has it: 1 is the most urgent, 0 the default. Levels beyond the last are the last."""
    return min(_integer(parameters, "priority", "0, or 1 and more") or DEFAULT_PRIORITY, LAST_PRIORITY)


def _level(parameters: Mapping[str, InferParameter]) -> float:
    if "level" not in parameters:
        return DEFAULT_LEVEL
    kind = parameters["level"].WhichOneof("parameter_choice")
    if kind == "double_param":
        level = parameters["level"].double_param
    else:  # not every client can send a double
        text = _text(parameters, "level", "")
        level = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not 0.0 < level < 1.0:
        shown = level if kind == "double_param" else repr(text[:80])
        raise InvalidRequest(f"parameter 'level' is {shown}; expected a number between 0 and 1, such as 0.9")
    return level


def _integer(parameters: Mapping[str, InferParameter], name: str, expected: str) -> int:
    """0 if it did not come. Raises InvalidRequest for negative ones."""
    if name not in parameters:
        return 0
    kind = parameters[name].WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest(f"parameter '{name}' came as {kind or 'nothing'}; expected int64_param: {expected}")
    value = int(getattr(parameters[name], kind))
    if value < 0:
        raise InvalidRequest(f"parameter '{name}' is {value}; expected {expected}")
    return value


def _outputs(message: ModelInferRequest, disclosure: Disclosure) -> tuple[str, ...]:
    if len(message.outputs) > 2 * len(OUTPUTS):
        raise InvalidRequest(f"{len(message.outputs)} outputs were asked for; the model has {len(disclosure.outputs)}")
    names = [output.name for output in message.outputs]
    for i, name in enumerate(names):
        if name not in OUTPUTS:
            raise InvalidRequest(f"unknown output '{name}'; expected one of {', '.join(disclosure.outputs)}")
        if name not in disclosure.outputs:
            raise InvalidRequest(f"output '{name}' was asked for; this server gives {' and '.join(disclosure.outputs)}")
        if name in names[:i]:
            raise InvalidRequest(f"output '{name}' was asked for twice; expected each output once")
    return tuple(names) or disclosure.default_outputs


def _classification(message: ModelInferRequest, classes: int) -> dict[str, int]:
    """Output parameter `classification`: how many classes; 0 asks for the tensor itself."""
    wanted: dict[str, int] = {}
    for output in message.outputs:
        count = _integer(output.parameters, "classification", f"0 to {classes} classes")
        if count > classes:
            raise InvalidRequest(f"parameter 'classification' is {count}; the model has {classes} classes")
        if count and output.name not in CLASSIFIED:
            raise InvalidRequest(
                f"output '{output.name}' came with parameter 'classification'; expected it on {' or '.join(CLASSIFIED)}"
            )
        if count:
            wanted[output.name] = count
    return wanted


def _inputs(message: ModelInferRequest, ensemble: Ensemble, max_rows: int) -> NDArray[np.generic] | tuple[bytes, ...]:
    """Rows, or encoded pictures."""
    name = ensemble.input_name
    if not message.inputs:
        raise InvalidRequest(f"there is no input; the model takes '{name}'")
    for tensor in message.inputs[:2]:
        if tensor.name != name:
            raise InvalidRequest(f"unknown input '{tensor.name}'; the model takes '{name}'")
    if len(message.inputs) > 1:
        raise InvalidRequest(f"{len(message.inputs)} inputs came; the model takes '{name}' once")
    (tensor,) = message.inputs
    if tensor.datatype == "BYTES" and takes_pictures(ensemble.input_datatype, ensemble.input_shape):
        return _pictures(name, message, max_rows)
    widened = ensemble.input_datatype == "FP32" and tensor.datatype in ("FP16", "BF16")
    if tensor.datatype != ensemble.input_datatype and not widened:
        raise InvalidRequest(f"input '{name}' is {tensor.datatype}; the model takes {ensemble.input_datatype}")
    shape = _shape(name, tensor.shape, ensemble.input_shape, max_rows)
    raw = _raw_contents(name, message)
    if raw is None:
        inputs = _typed(name, tensor, shape)
    else:
        inputs = (_widened if widened else _raw)(name, raw, tensor.datatype, shape)
    if inputs.dtype.kind == "f" and not (finite := np.isfinite(inputs)).all():
        row, *_ = np.unravel_index(int(np.argmin(finite)), finite.shape)
        value = inputs[~finite][0]
        raise InvalidRequest(f"input '{name}' holds {value} in row {row}; expected finite numbers")
    return inputs


def _raw_contents(name: str, message: ModelInferRequest) -> bytes | None:
    """None if the contents are typed."""
    raw = message.raw_input_contents
    if not raw:
        return None
    if message.inputs[0].HasField("contents"):
        raise InvalidRequest(f"input '{name}' came with raw and with typed contents; expected one of them")
    if len(raw) != 1:
        raise InvalidRequest(f"{len(raw)} raw contents came with 1 input; expected one each")
    return raw[0]


def _pictures(name: str, message: ModelInferRequest, max_rows: int) -> tuple[bytes, ...]:
    (tensor,) = message.inputs
    shape = list(tensor.shape[:3])
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise InvalidRequest(f"input '{name}' is BYTES {shape}; pictures are [B] or [B, 1]")
    rows = _limited(name, shape[0], max_rows)
    raw = _raw_contents(name, message)
    if raw is not None:
        try:
            return tuple(unpack(raw, rows))
        except ValueError as error:
            raise InvalidRequest(f"input '{name}': {error}") from None
    _check_field(name, tensor, "bytes_contents")
    values = tensor.contents.bytes_contents
    if len(values) != rows:
        raise InvalidRequest(f"input '{name}' has {len(values)} values in bytes_contents; {shape} is {rows}")
    return tuple(values)


def _limited(name: str, rows: int, max_rows: int) -> int:
    if rows > max_rows:
        raise InvalidRequest(f"input '{name}' has {rows} rows; this server takes {max_rows} at most in a request")
    return rows


def _shape(name: str, axes: Sequence[int], row_shape: tuple[int, ...], max_rows: int) -> list[int]:
    expected = [-1, *row_shape]
    shape = list(axes[: len(expected)])
    if len(axes) != len(expected):
        shown = f"{shape} …" if len(axes) > len(shape) else shape
        raise InvalidRequest(f"input '{name}' has {len(axes)} axes, {shown}; the model takes {expected}")
    for size in shape:
        if size <= 0:
            raise InvalidRequest(f"input '{name}' is {shape}; expected every axis to be 1 or more")
    if math.prod(shape) > INT64_MAX:  # Python's integers do not wrap
        raise InvalidRequest(f"input '{name}' is {shape}: more elements than int64 can count")
    if shape[1:] != expected[1:]:
        raise InvalidRequest(f"input '{name}' is {shape}; the model takes {expected}")
    _limited(name, shape[0], max_rows)
    return shape


def _raw(name: str, data: bytes, datatype: str, shape: list[int]) -> NDArray[np.generic]:
    # numpy has no BF16: its two bytes as they are.
    dtype = np.dtype("<u2") if datatype == "BF16" else DATATYPES[datatype].newbyteorder("<")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidRequest(
            f"input '{name}' has {len(data)} bytes of raw contents; {shape} of {datatype} is {expected}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _widened(name: str, data: bytes, datatype: str, shape: list[int]) -> NDArray[np.float32]:
    """FP16 or BF16 as float32, which holds every value of both."""
    values = _raw(name, data, datatype, shape)
    if datatype == "FP16":
        return values.astype(np.float32)
    return (values.astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32


def _typed(name: str, tensor: ModelInferRequest.InferInputTensor, shape: list[int]) -> NDArray[np.generic]:
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidRequest(f"input '{name}' is {tensor.datatype} without raw contents; it has no other form")
    _check_field(name, tensor, field)
    values = getattr(tensor.contents, field)
    expected = math.prod(shape)
    if len(values) != expected:
        raise InvalidRequest(f"input '{name}' has {len(values)} values in {field}; {shape} is {expected}")
    # Not np.fromiter: np.array is 200 times as fast on a repeated field. Its own type: left to itself, numpy makes
    # float64 of integers on both sides of 2^63.
    wide: NDArray[Any] = np.array(values, dtype=_WIRE_TYPES[field])
    dtype = DATATYPES[tensor.datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(wide.min()) < limits.min or int(wide.max()) > limits.max:
            raise InvalidRequest(
                f"input '{name}' holds {wide.min()} to {wide.max()}; {tensor.datatype} is {limits.min} to {limits.max}"
            )
    return wide.astype(dtype, copy=False).reshape(shape)


def _check_field(name: str, tensor: ModelInferRequest.InferInputTensor, field: str) -> None:
    """Typed contents of one datatype have one place."""
    for other in (*_WIRE_TYPES, "bytes_contents"):
        if other != field and len(getattr(tensor.contents, other)):
            raise InvalidRequest(f"input '{name}' came in {other}; {tensor.datatype} belongs in {field}")
