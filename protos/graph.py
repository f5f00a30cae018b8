"""The ONNX graph of an ensemble: what it declares, and how a member's tensors take the place of its own.

Replacement happens in the model's own bytes, before any runtime sees them: a runtime that is handed tensors
beside a model may already have folded the old ones into something else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# The Open Inference Protocol's names of the types that a graph's input may have.
DATATYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}


@dataclass(frozen=True)
class TensorType:
    """A tensor's element type and shape; -1 stands for an axis that varies."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Graph:
    """A parsed graph. Raises ValueError on bytes that are no self-contained, well-formed ONNX model."""

    def __init__(self, data: bytes) -> None:
        try:
            self.model = onnx.load_model_from_string(data)
        except Exception as error:  # protobuf's own DecodeError class differs between its implementations
            raise ValueError(f"not an ONNX model: {error}") from None
        # Before the checker, which would follow the path of external data.
        _refuse_what_could_reach_out(self.model)
        try:
            onnx.checker.check_model(self.model)
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            raise ValueError(f"not a well-formed ONNX model: {first_line}") from None
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        values = (*self.model.graph.input, *self.model.graph.output)
        if shared := sorted({value.name for value in values} & self.initializers.keys()):
            raise ValueError(f"'{shared[0]}' is an initializer and an input or output; expected one of them")
        self.inputs = {value.name: _tensor_type(value) for value in self.model.graph.input}
        self.outputs = {value.name: _tensor_type(value) for value in self.model.graph.output}
        self._types = {
            name: TensorType(_dtype(tensor.data_type, name), tuple(tensor.dims))
            for name, tensor in self.initializers.items()
        }

    def tensor_type(self, name: str) -> TensorType | None:
        """Of an initializer; None if the graph has none of that name."""
        return self._types.get(name)


def with_tensors(model: onnx.ModelProto, tensors: Mapping[str, NDArray[np.generic]]) -> onnx.ModelProto:
    """A copy of the model with these initializers' values; names, types and shapes must be the model's."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in tensors:
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name], tensor.name))
    return copy


def _refuse_what_could_reach_out(model: onnx.ModelProto) -> None:
    """Raises ValueError for tensors in other files, foreign operators, and parts where either could hide."""
    if model.functions or model.training_info:
        raise ValueError("the model has local functions or training information; expected a plain graph")
    for operators in model.opset_import:
        if operators.domain not in ("", "ai.onnx"):
            raise ValueError(f"the model uses operators of '{operators.domain}'; expected ONNX's own")
    for tensor in _graph_tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ValueError(f"tensor '{tensor.name}' lies in another file; the graph must hold all of its data")


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every tensor: initializers, attributes of nodes, those of subgraphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(subgraph)


def _tensor_type(value: onnx.ValueInfoProto) -> TensorType:
    """Raises ValueError for what is no tensor."""
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"'{value.name}' is no tensor")
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)
    if any(axis.HasField("dim_value") and axis.dim_value < 1 for axis in tensor.shape.dim):
        raise ValueError(f"'{value.name}' has shape {list(shape)}; expected axes of 1 or more")
    return TensorType(_dtype(tensor.elem_type, value.name), shape)


def _dtype(element_type: int, name: str) -> np.dtype:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(element_type))
    except (KeyError, TypeError):
        raise ValueError(f"'{name}' has elements of unknown type {element_type}") from None
