"""An oracle over the wire: a live server of the Open Inference Protocol, asked as any client may ask. Needs grpcio.

Only what the server tells is used: its metadata, and its answers. `--through HOST:PORT`.
"""

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import torch
from torch import Tensor

from protos import open_inference_grpc_pb2 as oip
from protos.graph import DATATYPES
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from trainer.attack.oracle import OutOfQueries, as_sent
from trainer.errors import UserError

IN_FLIGHT = 4  # requests at a time: enough to keep a server busy, too few to fill its queue
TIMEOUT_S = 30.0
MOST_DECIMALS = 6  # what float32 can show of a rounded probability
PUSHBACK = "grpc-retry-pushback-ms"
POLICIES = ("mean", "random", "curve")


class ServerOracle:
    """`Oracle` for one model. `queries` counts rows that were answered, as the server counts them."""

    def __init__(
        self,
        address: str,
        model: str,
        like: Tensor,
        classes: int,
        *,
        token: str | None = None,
        authorities: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """like: raw rows as it will be asked about, of their own type.

        token: a bearer token. authorities: PEM; encrypted, these say who the server is.
        Raises UserError if nobody answers, or if what is served does not fit.
        """
        self.address, self._model, self._timeout_s = address, model, timeout_s
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if authorities is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            credentials = grpc.ssl_channel_credentials(authorities.read_bytes())
            self._channel = grpc.secure_channel(address, credentials, options)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self.queries = 0
        self.decimals = 0  # that the answers so far show; more than MOST_DECIMALS: they are not rounded
        try:
            self._describe(like, classes)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    @property
    def answers(self) -> str:
        """What the server discloses, as its answers so far show: "labels", "rounded:N" or "full"."""
        if self._output == "label":
            return "labels"
        return "full" if self.decimals > MOST_DECIMALS else f"rounded:{self.decimals}"

    def __call__(self, rows: Tensor) -> Tensor:
        """Probabilities [N, C], float32; one-hot where the server gives labels alone.

        Raises OutOfQueries where the server refuses more, UserError for any other refusal.
        """
        calls: deque[tuple[Any, int]] = deque()
        answers = []
        try:
            for part in rows.split(self._batch_rows):
                request = self._request(part)
                call = self._stub.ModelInfer.future(request, timeout=self._timeout_s, metadata=self._metadata)
                calls.append((call, len(part)))
                if len(calls) == IN_FLIGHT:
                    answers.append(self._answer(*calls.popleft()))
            while calls:
                answers.append(self._answer(*calls.popleft()))
        finally:
            for call, _ in calls:
                call.cancel()
        return torch.cat(answers)

    def _describe(self, like: Tensor, classes: int) -> None:
        """Learns what the model takes and gives. Raises UserError unless it fits."""
        request = oip.ModelMetadataRequest(name=self._model)
        told = self._result(self._stub.ModelMetadata.future(request, timeout=self._timeout_s, metadata=self._metadata))
        row, outputs = list(like.shape[1:]), [output.name for output in told.outputs]
        takes = [(tensor.name, tensor.datatype, list(tensor.shape[1:])) for tensor in told.inputs]
        wanted = [name for name, dtype in DATATYPES.items() if dtype == like.numpy().dtype]
        if [(datatype, shape) for _, datatype, shape in takes] != [(name, row) for name in wanted]:
            raise self._unfit(f"takes {takes}", f"one input of {' or '.join(wanted)} {row}")
        ((self._input, self._datatype, _),) = takes
        if not {"probs", "label"} & set(outputs):
            raise self._unfit(f"gives {outputs}", "probs or label")
        self._output = "probs" if "probs" in outputs else "label"
        properties = told.properties
        if missing := {"class_labels", "max_batch_rows", "policy"} - set(properties):
            raise self._unfit(f"says nothing of its {min(missing)}", "a model that Thalweg serves")
        labels, rows = _list(properties["class_labels"]), properties["max_batch_rows"]
        if not rows.isdigit() or not int(rows):
            raise self._unfit(f"takes '{rows[:80]}' rows at most", "1 or more")
        if len(labels) != classes:
            raise self._unfit(f"has {len(labels)} classes", str(classes))
        self._classes = {str(label).encode(): index for index, label in enumerate(labels)}
        self._batch_rows = int(rows)
        self.policy = properties["policy"]  # that answers whoever asks for none
        if self.policy not in POLICIES:
            raise self._unfit(f"answers by policy '{self.policy}'", " or ".join(POLICIES))

    def _request(self, rows: Tensor) -> oip.ModelInferRequest:
        request = oip.ModelInferRequest(model_name=self._model)
        request.inputs.add(name=self._input, datatype=self._datatype, shape=rows.shape)
        request.raw_input_contents.append(as_sent(rows, DATATYPES[self._datatype].newbyteorder("<")).tobytes())
        request.outputs.add(name=self._output)
        return request

    def _answer(self, call: Any, rows: int) -> Tensor:
        response = self._result(call)
        self.queries += rows
        policy, classes = response.parameters["policy"].string_param, len(self._classes)
        if policy != self.policy:
            raise self._unfit(f"answered by policy '{policy}'", f"'{self.policy}'")
        data = b"".join(response.raw_output_contents)
        if self._output == "label":
            indices = [self._classes.get(label, -1) for label in _elements(data)]
            if len(indices) != rows or -1 in indices:
                raise self._unfit(f"answered {rows} rows with {data[:80]!r}", "a label of the model's for each")
            return torch.nn.functional.one_hot(torch.tensor(indices), classes).float()
        if len(data) != 4 * rows * classes:
            raise self._unfit(f"answered {rows} rows with {len(data)} bytes", f"FP32 [{rows}, {classes}]")
        probs = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32)).view(rows, classes)
        self.decimals = decimals(probs, self.decimals)
        return probs

    def _result(self, call: Any) -> Any:
        try:
            return call.result()
        except grpc.RpcError as error:
            said = f"'{self.address}' said {call.code().name} after {self.queries} queries: {call.details()}"
            # A budget says when to come again; a full queue does not, and is not this client's doing alone.
            over_budget = any(key == PUSHBACK for key, _ in call.trailing_metadata() or ())
            raise (OutOfQueries if over_budget else UserError)(said) from error

    def _unfit(self, arrived: str, expected: str) -> UserError:
        return UserError(f"model '{self._model}' at '{self.address}' {arrived}; expected {expected}")


def decimals(probs: Tensor, least: int = 0) -> int:
    """The fewest decimals, from `least` on, that all probabilities are whole in; 7: they are not rounded."""
    exact = probs.double()
    for count in range(least, MOST_DECIMALS + 1):
        # Relative to float32's own rounding, so that 1e-9 is no rounded 0.
        if ((exact.round(decimals=count) - exact).abs() <= 1e-7 * exact).all():
            return count
    return MOST_DECIMALS + 1


def _list(text: str) -> list[object]:
    """What JSON says, if it is a list; else an empty one."""
    try:
        value = json.loads(text)
    except ValueError:
        return []
    return value if isinstance(value, list) else []


def _elements(data: bytes) -> Iterator[bytes]:
    """Of a BYTES tensor: before each its length, 4 bytes, little-endian."""
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        yield data[start + 4 : end]
        start = end
