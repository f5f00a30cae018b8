"""JSON and binary bodies of the protocol over HTTP, to and from the messages of gRPC. Decides nothing about them.

A body is JSON, perhaps followed by the raw contents of tensors whose JSON says how many bytes they have
(`binary_data_size`); the header Inference-Header-Content-Length then says where the JSON ends.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message

from protos import open_inference_grpc_pb2 as oip
from protos.graph import DATATYPES
from serving.bytes_tensor import unpack
from serving.errors import InvalidRequest
from serving.parameter import parameter
from serving.request import CONTENTS

LARGEST_JSON_BYTES = 2**22  # parsing holds up everything else: larger tensors come in binary
_KINDS = {str: "a string", list: "a list", dict: "an object", int: "an integer"}


class Wanted:
    """Which outputs come in binary, by what the request says."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._default = parameters(request).get("binary_data_output") is True
        self._named = {
            output.get("name"): parameters(output)["binary_data"] is True
            for output in _list_of_objects(request, "outputs")
            if "binary_data" in parameters(output)
        }

    def binary(self, name: str) -> bool:
        return self._named.get(name, self._default)


def request(name: str, version: str, body: bytes, json_bytes: int | None) -> tuple[oip.ModelInferRequest, Wanted]:
    """json_bytes: what Inference-Header-Content-Length says, if it came. Raises InvalidRequest."""
    size = len(body) if json_bytes is None else json_bytes
    if not 0 <= size <= len(body):
        raise InvalidRequest(f"Inference-Header-Content-Length is {size}; the body has {len(body)} bytes")
    if size > LARGEST_JSON_BYTES:
        raise InvalidRequest(f"{size} bytes of JSON; expected at most {LARGEST_JSON_BYTES}: send tensors in binary")
    said = parse_object(body[:size])
    message = oip.ModelInferRequest(model_name=name, model_version=version, id=_get(said, "id", str, ""))
    _copy_parameters(said, message.parameters)
    rest = memoryview(body)[size:]
    for tensor in _list_of_objects(said, "inputs"):
        rest = rest[_add_input(message, tensor, rest) :]
    if len(rest):
        raise InvalidRequest(
            f"{len(rest)} bytes are left after the inputs; expected their binary_data_size to cover all"
        )
    for output in _list_of_objects(said, "outputs"):
        added = message.outputs.add(name=_get(output, "name", str, ""))
        _copy_parameters(output, added.parameters, "binary_data")
    return message, Wanted(said)


def parse_object(text: bytes) -> dict[str, Any]:
    """Raises InvalidRequest."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{len(text)} bytes that are no JSON: {error}") from None
    if not isinstance(said, dict):
        raise InvalidRequest("the JSON is no object")
    return said


def _add_input(message: oip.ModelInferRequest, tensor: Mapping[str, Any], rest: memoryview) -> int:
    """How many bytes of `rest` it takes."""
    datatype, shape = _get(tensor, "datatype", str, ""), _get(tensor, "shape", list, [])
    try:
        added = message.inputs.add(name=_get(tensor, "name", str, ""), datatype=datatype, shape=shape)
    except (TypeError, ValueError):
        raise InvalidRequest(f"'shape' is {str(shape)[:80]}; expected integers") from None
    _copy_parameters(tensor, added.parameters, "binary_data_size")
    size = parameters(tensor).get("binary_data_size")
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise InvalidRequest(f"'binary_data_size' is {str(size)[:80]}; {len(rest)} bytes follow the JSON")
        if "data" in tensor:
            raise InvalidRequest(f"input '{added.name}' came with data and with binary_data_size; expected one of them")
        message.raw_input_contents.append(bytes(rest[:size]))
        return size
    values = _flat(_get(tensor, "data", list, []))
    try:
        if datatype == "BYTES":
            added.contents.bytes_contents.extend(value.encode() for value in values)
        elif datatype in CONTENTS:  # any other is refused where all are
            getattr(added.contents, CONTENTS[datatype]).extend(values)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"'data' of input '{added.name}' does not fit {datatype}: {error}") from None
    return 0


def _flat(values: list[Any]) -> list[Any]:
    """Row-major, from lists in lists, or flat already."""
    while values and isinstance(values[0], list):
        if not all(isinstance(row, list) for row in values):
            raise InvalidRequest("'data' mixes lists and values")
        values = [value for row in values for value in row]
    return values


def _copy_parameters(said: Mapping[str, Any], to: Any, but: str = "") -> None:
    for name, value in parameters(said).items():
        if name != but:
            try:
                to[name].CopyFrom(parameter(value))
            except (TypeError, ValueError) as error:
                raise InvalidRequest(f"parameter '{name}': {error}") from None


def parameters(said: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _get(said, "parameters", dict, {})
    return found


def _list_of_objects(said: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = _get(said, key, list, [])
    if not all(isinstance(value, dict) for value in values):
        raise InvalidRequest(f"'{key}' holds something else than objects")
    return values


def _get(said: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = said.get(key, default)
    if not isinstance(value, kind):
        raise InvalidRequest(f"'{key}' is {str(value)[:80]}; expected {_KINDS[kind]}")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRequest(f"'{key}' holds half of a surrogate pair; expected text")  # no protobuf string takes it
    return value


def response(message: oip.ModelInferResponse, wanted: Wanted) -> tuple[bytes, int | None]:
    """The body, and where its JSON ends if something follows."""
    binary: list[bytes] = []
    outputs: list[dict[str, Any]] = []
    for output, data in zip(message.outputs, message.raw_output_contents, strict=True):
        told: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if wanted.binary(output.name):
            told["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        elif output.datatype == "BYTES":
            elements = unpack(data, int(np.prod(output.shape)))
            told["data"] = [element.decode(errors="replace") for element in elements]
        else:
            told["data"] = np.frombuffer(data, DATATYPES[output.datatype].newbyteorder("<")).tolist()
        outputs.append(told)
    told = {
        "model_name": message.model_name,
        "model_version": message.model_version,
        "parameters": {
            name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in message.parameters.items()
        },
        "outputs": outputs,
    }
    if message.id:
        told["id"] = message.id
    text = json.dumps(told).encode()
    return b"".join([text, *binary]), len(text) if binary else None


def plain(message: Message) -> dict[str, Any]:
    """Any message as JSON values, with every field; 64-bit numbers stay numbers, not strings as protobuf has them."""
    return {
        field.name: _plain_field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _plain_field(field: Any, value: Any) -> Any:
    def one(value: Any) -> Any:
        if field.enum_type is not None:
            return field.enum_type.values_by_number[value].name
        return plain(value) if field.message_type is not None else value

    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {key: plain(item) if isinstance(item, Message) else item for key, item in value.items()}
    return [one(item) for item in value] if field.is_repeated else one(value)
