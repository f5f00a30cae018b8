"""The ONNX graph of an ensemble: what it declares, and how a member's tensors take the place of its own.

Replacement happens in the model's own bytes, before any runtime sees them: a runtime that is handed tensors
beside a model may already have folded the old ones into something else.
"""

from collections.abc import Iterable, Iterator, Mapping
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
        # Before the checker, which would follow the path.
        for tensor in _all_tensors(self.model):
            if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
                raise ValueError(f"tensor '{tensor.name}' lies in another file; the graph must hold all of its data")
        try:
            onnx.checker.check_model(self.model)
        except onnx.checker.ValidationError as error:
            raise ValueError(f"not a well-formed ONNX model: {str(error).splitlines()[0]}") from None
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.inputs = {
            value.name: _tensor_type(value) for value in self.model.graph.input if value.name not in self.initializers
        }
        self.outputs = {value.name: _tensor_type(value) for value in self.model.graph.output}

    def tensor_type(self, name: str) -> TensorType | None:
        """Of an initializer; None if the graph has none of that name."""
        tensor = self.initializers.get(name)
        if tensor is None:
            return None
        return TensorType(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)), tuple(tensor.dims))

    def with_tensors(self, tensors: Mapping[str, NDArray[np.generic]]) -> onnx.ModelProto:
        """A copy of the model with these initializers' values; names, types and shapes must be the graph's."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in tensors:
                tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name], tensor.name))
        return model


def _all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model: initializers, attributes of nodes, those of subgraphs and functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)


def _tensor_type(value: onnx.ValueInfoProto) -> TensorType:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)
    return TensorType(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)
