"""A small client: numpy arrays in, a typed answer out. For the command line, the demo, tests and benchmarks."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import open_inference_grpc_pb2 as oip
from protos.graph import DATATYPES
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub

IN_FLIGHT = 4  # requests of one call at a time: enough to keep a server busy, too few to fill its queue


@dataclass(frozen=True)
class Model:
    """What the server says of its model."""

    name: str
    version: str
    input_name: str
    input_datatype: str
    input_shape: tuple[int, ...]  # of one row
    class_labels: list[str]
    members: int
    max_batch_rows: int


@dataclass(frozen=True)
class Answer:
    probs: NDArray[np.float32]  # [B, C]
    entropy: NDArray[np.float32]  # [B], nats
    mutual_information: NDArray[np.float32]  # [B], nats
    member_probs: NDArray[np.float32] | None  # [B, M, C], if asked for
    policy: str
    members_run: int


class Client:
    """Talks to one server; every call has a deadline. grpc.RpcError carries the server's message in `details()`."""

    def __init__(self, target: str, model_name: str, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            target, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        )
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._name = model_name
        self._model: Model | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def model(self) -> Model:
        """Asked for once."""
        if self._model is None:
            metadata = self._stub.ModelMetadata(oip.ModelMetadataRequest(name=self._name), timeout=self._timeout_s)
            (tensor,) = metadata.inputs
            self._model = Model(
                name=metadata.name,
                version=metadata.versions[-1],
                input_name=tensor.name,
                input_datatype=tensor.datatype,
                input_shape=tuple(tensor.shape[1:]),
                class_labels=json.loads(metadata.properties["class_labels"]),
                members=int(metadata.properties["members"]),
                max_batch_rows=int(metadata.properties["max_batch_rows"]),
            )
        return self._model

    def predict(
        self,
        inputs: NDArray[np.generic],
        *,
        policy: str | None = None,
        members: Sequence[int] | None = None,
        member_probs: bool = False,
    ) -> Answer:
        """The answer to rows [B, ...] of the model's datatype, in as many requests as the server's limit needs."""
        model = self.model()
        size = model.max_batch_rows
        answers, calls = [], deque[Any]()
        for start in range(0, max(len(inputs), 1), size):
            message = self._request(model, inputs[start : start + size], policy, members, member_probs)
            if len(calls) == IN_FLIGHT:
                answers.append(_answer(calls.popleft().result()))
            calls.append(self._stub.ModelInfer.future(message, timeout=self._timeout_s))
        answers += [_answer(call.result()) for call in calls]
        if len(answers) == 1:
            return answers[0]
        return Answer(
            probs=np.concatenate([answer.probs for answer in answers]),
            entropy=np.concatenate([answer.entropy for answer in answers]),
            mutual_information=np.concatenate([answer.mutual_information for answer in answers]),
            member_probs=np.concatenate([a.member_probs for a in answers if a.member_probs is not None])
            if member_probs
            else None,
            policy=answers[0].policy,
            members_run=answers[0].members_run,
        )

    def _request(
        self,
        model: Model,
        inputs: NDArray[np.generic],
        policy: str | None,
        members: Sequence[int] | None,
        member_probs: bool,
    ) -> oip.ModelInferRequest:
        message = oip.ModelInferRequest(model_name=model.name)
        message.inputs.add(name=model.input_name, datatype=model.input_datatype, shape=inputs.shape)
        dtype = DATATYPES[model.input_datatype].newbyteorder("<")
        if inputs.dtype != dtype:
            raise TypeError(f"the inputs are {inputs.dtype}; the model takes {dtype} ({model.input_datatype})")
        message.raw_input_contents.append(np.ascontiguousarray(inputs, dtype).tobytes())
        names = ["probs", "entropy", "mutual_information", *(["member_probs"] if member_probs else [])]
        for name in names:
            message.outputs.add(name=name)
        if policy is not None:
            message.parameters["policy"].string_param = policy
        if members is not None:
            message.parameters["members"].string_param = ",".join(map(str, members))
        return message


def _answer(response: oip.ModelInferResponse) -> Answer:
    tensors = {
        output.name: np.frombuffer(data, "<f4").reshape(tuple(output.shape))
        for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    return Answer(
        probs=tensors["probs"],
        entropy=tensors["entropy"],
        mutual_information=tensors["mutual_information"],
        member_probs=tensors.get("member_probs"),
        policy=response.parameters["policy"].string_param,
        members_run=response.parameters["members_run"].int64_param,
    )
