"""What a client says and hears: a request from rows, a typed answer from a response. No connection here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from protos import open_inference_grpc_pb2 as oip
from protos.graph import DATATYPES
from serving.bytes_tensor import unpack
from serving.parameter import parameter

DEFAULT_OUTPUTS = ("probs", "entropy", "mutual_information")


@dataclass(frozen=True)
class Model:
    """What the server says of its model."""

    name: str
    version: str
    input_name: str
    input_datatype: str
    input_shape: tuple[int, ...]  # of one row
    outputs: tuple[str, ...]
    class_labels: list[str]
    members: int
    max_batch_rows: int


class Asked(TypedDict, total=False):
    """What a prediction may ask for, beside its rows."""

    policy: str
    members: Sequence[int | str]  # indices or ids, for policy `members`
    member_probs: bool  # answer with each member's own probabilities as well
    also: Sequence[str]  # outputs beside the default ones, by name
    level: float  # of output `prediction_set`: the share of rows whose set holds the true class
    parameters: Mapping[str, bool | int | float | str]  # any other request parameters
    priority: int  # 1 is the most urgent


@dataclass(frozen=True)
class Answer:
    """Every output by its name, rows first; the usual ones as properties."""

    outputs: Mapping[str, NDArray[np.generic]]
    policy: str
    members_run: int  # on each row; the most, if they differ; 0 if the server does not tell
    model_version: str

    @property
    def probs(self) -> NDArray[np.float32]:
        """[B, C]"""
        return self._floats("probs")

    @property
    def entropy(self) -> NDArray[np.float32]:
        """[B], nats"""
        return self._floats("entropy")

    @property
    def mutual_information(self) -> NDArray[np.float32]:
        """[B], nats"""
        return self._floats("mutual_information")

    @property
    def member_probs(self) -> NDArray[np.float32] | None:
        """[B, M, C], if asked for"""
        return self._floats("member_probs") if "member_probs" in self.outputs else None

    @property
    def energy(self) -> NDArray[np.float32]:
        """[B], if asked for: higher for what looks unfamiliar"""
        return self._floats("energy")

    @property
    def prediction_set(self) -> NDArray[np.bool_]:
        """[B, C], if asked for"""
        return self.outputs["prediction_set"].astype(np.bool_, copy=False)

    @property
    def labels(self) -> list[str]:
        """Of each row, if asked for, or if the server gives nothing else"""
        return [label.decode() for label in self.outputs["label"].tolist()]

    def _floats(self, name: str) -> NDArray[np.float32]:
        return self.outputs[name].astype(np.float32, copy=False)


def model(metadata: oip.ModelMetadataResponse, version: str) -> Model:
    """version: the one that will be asked for; empty: the latest."""
    (tensor,) = metadata.inputs
    return Model(
        name=metadata.name,
        version=version or metadata.versions[-1],
        input_name=tensor.name,
        input_datatype=tensor.datatype,
        input_shape=tuple(tensor.shape[1:]),
        outputs=tuple(output.name for output in metadata.outputs),
        class_labels=json.loads(metadata.properties["class_labels"]),
        members=int(metadata.properties["members"]),
        max_batch_rows=int(metadata.properties["max_batch_rows"]),
    )


def request(model: Model, version: str, rows: NDArray[np.generic], asked: Asked) -> oip.ModelInferRequest:
    """rows: [B, ...], already of the model's datatype. version: empty for the one that is served by default."""
    message = oip.ModelInferRequest(model_name=model.name, model_version=version)
    message.inputs.add(name=model.input_name, datatype=model.input_datatype, shape=rows.shape)
    little_endian = DATATYPES[model.input_datatype].newbyteorder("<")
    message.raw_input_contents.append(np.ascontiguousarray(rows, little_endian).tobytes())
    more = ("member_probs",) if asked.get("member_probs") else ()
    default = tuple(name for name in DEFAULT_OUTPUTS if name in model.outputs) or model.outputs
    for name in dict.fromkeys((*default, *more, *asked.get("also", ()))):
        message.outputs.add(name=name)
    parameters: dict[str, bool | int | float | str] = dict(asked.get("parameters", {}))
    if "policy" in asked:
        parameters["policy"] = asked["policy"]
    if "members" in asked:
        parameters["members"] = ",".join(map(str, asked["members"]))
    if "level" in asked:
        parameters["level"] = asked["level"]
    if "priority" in asked:
        parameters["priority"] = asked["priority"]
    for name, value in parameters.items():
        message.parameters[name].CopyFrom(parameter(value))
    return message


def answer(response: oip.ModelInferResponse) -> Answer:
    return Answer(
        outputs={
            output.name: _tensor(output, data)
            for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
        },
        policy=response.parameters["policy"].string_param,
        members_run=response.parameters["members_run"].int64_param,
        model_version=response.model_version,
    )


def joined(answers: Iterable[Answer]) -> Answer:
    """The answer to all rows, from those to each part of them."""
    parts = list(answers)
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in first.outputs}
    return Answer(outputs, first.policy, max(part.members_run for part in parts), first.model_version)


def _tensor(output: oip.ModelInferResponse.InferOutputTensor, data: bytes) -> NDArray[np.generic]:
    shape = tuple(output.shape)
    if output.datatype == "BYTES":
        elements = np.empty(int(np.prod(shape)), object)
        elements[:] = unpack(data, elements.size)
        return elements.reshape(shape)
    return np.frombuffer(data, DATATYPES[output.datatype].newbyteorder("<")).reshape(shape)
