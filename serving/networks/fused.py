"""Several members as one graph, for networks so small that a call costs as much as what it computes.

Members of a group share the rows, the call and, in one graph, the scratch memory, which then stays in the cache. Each
member is loaded by itself as well, for requests that want some of them: a second copy of its weights.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper

from protos.stored_ensemble import StoredEnsemble, Tensors
from serving.networks.skeleton import Skeleton

LOGITS = "logits"


def groups(members: int, count: int) -> Iterator[slice]:
    """Consecutive members in so many groups, or fewer, of sizes that differ by one at most; none is empty."""
    count = min(count, members)
    for i in range(count):
        yield slice(members * i // count, members * (i + 1) // count)


def fused_graph(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The model so many times, each with tensors of its own: the same rows [B, ...] → `logits` [count, B, C]."""
    fused = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = fused.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    stacked = []
    for i in range(count):
        renamed = compose.add_prefix(model, _prefix(i), rename_inputs=False).graph
        graph.node.extend(renamed.node)
        graph.initializer.extend(renamed.initializer)
        graph.sparse_initializer.extend(renamed.sparse_initializer)
        stacked.append(f"{_prefix(i)}stacked")
        graph.node.append(helper.make_node("Unsqueeze", [f"{_prefix(i)}{LOGITS}", _AXIS], stacked[-1:]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), _AXIS))
    graph.node.append(helper.make_node("Concat", stacked, [LOGITS], axis=0))
    logits = next(output for output in model.graph.output if output.name == LOGITS).type.tensor_type
    axes = [axis.dim_value or None for axis in logits.shape.dim]
    graph.output.append(helper.make_tensor_value_info(LOGITS, logits.elem_type, [count, *axes]))
    return fused


def fused_skeleton(stored: StoredEnsemble, count: int) -> Skeleton:
    manifest = stored.manifest
    replaced = [*manifest.parameter_names, *manifest.statistic_names]
    model = fused_graph(stored.graph.model, count)
    return Skeleton(model, {f"{_prefix(i)}{name}" for i in range(count) for name in replaced})


def fused_tensors(tensors: Sequence[Tensors]) -> dict[str, NDArray[np.generic]]:
    """Of members in order, under the names that they have in the fused graph."""
    return {f"{_prefix(i)}{name}": tensor for i, own in enumerate(tensors) for name, tensor in own.items()}


_AXIS = "fused / axis"


def _prefix(i: int) -> str:
    return f"fused {i} / "
