"""A graph without its tensors: parsed and serialised once, and shared by all members, whose tensors come beside it."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from protos.graph import with_tensors


class Skeleton:
    """model: its initializers of these names lose their data; who loads it supplies them, of the same type and shape.

    Marked as data that lies elsewhere, not as inputs: a runtime that gets them before it optimises may fold them.
    """

    def __init__(self, model: onnx.ModelProto, names: Collection[str]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        for tensor in self.model.graph.initializer:
            if tensor.name in names:
                tensor.CopyFrom(TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
                tensor.data_location = TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value="supplied when loaded")
        self.data = self.model.SerializeToString()
        rows = self.model.graph.input[0]
        self.input_name = rows.name
        self.row_shape = tuple(axis.dim_value for axis in rows.type.tensor_type.shape.dim[1:])
        self.row_type = np.dtype(helper.tensor_dtype_to_np_dtype(rows.type.tensor_type.elem_type))

    def filled(self, tensors: Mapping[str, NDArray[np.generic]]) -> onnx.ModelProto:
        """A model of its own, for who cannot take tensors beside it."""
        return with_tensors(self.model, tensors)
