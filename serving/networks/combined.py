"""One network for every combination of some weight sets: coefficients are an input, weights are made as it runs.

Holds each weight set once, whatever the number of members. A parameter is Σ_k coefficient_k · weight set k, a product
[1, K] × [K, n] in the graph, made just before its first use and gone after its last. It costs what a runtime gains
from weights that are constant: 1.4 to 2.7 times the time on a CPU.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from protos.ensemble_pb2 import Member
from protos.stored_ensemble import StoredEnsemble, Tensors
from serving.errors import StartupError
from serving.networks.engines.call import Feeds
from serving.networks.engines.engine import Engine
from serving.networks.skeleton import Skeleton

# Slashes and spaces: no name of a `state_dict`, and no exporter's.
COEFFICIENTS = "combined / coefficients"
STATISTICS = "combined / statistics"


class Combined:
    """The network of these weight sets, loaded. stored: its other tensors are not kept."""

    def __init__(self, stored: StoredEnsemble, weight_sets: Sequence[str], engine: Engine) -> None:
        if (version := opset(stored.graph.model)) < 13:
            raise StartupError(f"the graph has opset {version}; weights can be combined as it runs from opset 13 on")
        self.weight_sets = tuple(weight_sets)
        stacks = {
            _stack(name): np.stack([stored.weight_sets[k][name].ravel() for k in self.weight_sets])
            for name in stored.manifest.parameter_names
        }
        manifest = stored.manifest
        model = combined_graph(stored.graph.model, manifest.parameter_names, manifest.statistic_names, len(weight_sets))
        self.network = engine.load(Skeleton(model, stacks), stacks)

    def feeds(self, coefficients: Mapping[str, float], statistics: NDArray[np.generic]) -> Feeds:
        """coefficients: by weight set, 0 where absent. statistics: flat, as `flatten` makes them."""
        row = [[coefficients.get(name, 0.0) for name in self.weight_sets]]
        feeds: dict[str, NDArray[np.generic]] = {COEFFICIENTS: np.array(row, np.float32)}
        return feeds | ({STATISTICS: statistics} if len(statistics) else {})

    def member_feeds(self, stored: StoredEnsemble, member: Member) -> Feeds:
        terms = {term.weight_set: term.coefficient for term in member.terms}
        return self.feeds(terms, flatten(stored, member))


def flatten(stored: StoredEnsemble, member: Member) -> NDArray[np.floating]:
    """The member's statistics, [S], in the manifest's order of names; [0] of a network without."""
    names = stored.manifest.statistic_names
    tensors: Tensors = stored.statistics[member.statistics] if names else {}
    kind = _flat_type([stored.graph.initializers[name] for name in names])
    return np.concatenate([np.empty(0, kind), *(tensors[name].ravel() for name in names)], dtype=kind)


def _flat_type(tensors: Sequence[TensorProto]) -> np.dtype:
    """Of several tensors in one vector: none loses digits."""
    return np.result_type(np.float32, *(helper.tensor_dtype_to_np_dtype(tensor.data_type) for tensor in tensors))


def combined_graph(
    model: onnx.ModelProto, parameters: Sequence[str], statistics: Sequence[str], weight_sets: int
) -> onnx.ModelProto:
    """The model with inputs for coefficients [1, K] and flat statistics [S], and K values in place of each parameter.

    The stacks are declared, [K, n] each under `_stack(name)`, and hold nothing yet.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    replaced = {*parameters, *statistics}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in tensors.items() if name not in replaced)

    graph.input.append(helper.make_tensor_value_info(COEFFICIENTS, TensorProto.FLOAT, [1, weight_sets]))
    nodes: list[NodeProto] = []
    if statistics:
        nodes += _statistic_nodes(graph, [tensors[name] for name in statistics])
    combining = {name: _parameter_nodes(graph, tensors[name], weight_sets) for name in parameters}
    for node in graph.node:
        for name in _reads(node):
            nodes += combining.pop(name, [])
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def opset(model: onnx.ModelProto) -> int:
    return max(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def _stack(name: str) -> str:
    return f"{name} / stack"


def _parameter_nodes(graph: onnx.GraphProto, tensor: TensorProto, weight_sets: int) -> list[NodeProto]:
    name, flat, shape = tensor.name, f"{tensor.name} / flat", f"{tensor.name} / shape"
    count = int(np.prod(tensor.dims))
    graph.initializer.append(TensorProto(name=_stack(name), dims=[weight_sets, count], data_type=tensor.data_type))
    graph.initializer.append(numpy_helper.from_array(np.array(tensor.dims, np.int64), shape))
    if tensor.data_type == TensorProto.FLOAT:
        return [
            helper.make_node("MatMul", [COEFFICIENTS, _stack(name)], [flat]),
            helper.make_node("Reshape", [flat, shape], [name]),
        ]
    # Summed in float64, as materialised members are, and rounded once.
    kind, wide = tensor.data_type, TensorProto.DOUBLE
    return [
        helper.make_node("Cast", [COEFFICIENTS], [f"{name} / coefficients"], to=wide),
        helper.make_node("Cast", [_stack(name)], [f"{name} / wide"], to=wide),
        helper.make_node("MatMul", [f"{name} / coefficients", f"{name} / wide"], [f"{name} / sum"]),
        helper.make_node("Cast", [f"{name} / sum"], [flat], to=kind),
        helper.make_node("Reshape", [flat, shape], [name]),
    ]


def _statistic_nodes(graph: onnx.GraphProto, tensors: Sequence[TensorProto]) -> Iterator[NodeProto]:
    kind = helper.np_dtype_to_tensor_dtype(_flat_type(tensors))
    counts = [int(np.prod(tensor.dims)) for tensor in tensors]
    graph.input.append(helper.make_tensor_value_info(STATISTICS, kind, [sum(counts)]))
    sizes = f"{STATISTICS} / sizes"
    graph.initializer.append(numpy_helper.from_array(np.array(counts, np.int64), sizes))
    parts = [f"{tensor.name} / flat" for tensor in tensors]
    yield helper.make_node("Split", [STATISTICS, sizes], parts, axis=0)
    for tensor, part in zip(tensors, parts, strict=True):
        shape, shaped = f"{tensor.name} / shape", f"{tensor.name} / shaped"
        graph.initializer.append(numpy_helper.from_array(np.array(tensor.dims, np.int64), shape))
        yield helper.make_node("Reshape", [part, shape], [shaped])
        yield helper.make_node("Cast", [shaped], [tensor.name], to=tensor.data_type)


def _reads(node: NodeProto) -> Iterator[str]:
    """The names that a node reads, in its subgraphs as well."""
    yield from node.input
    for attribute in node.attribute:
        for subgraph in (attribute.g, *attribute.graphs):
            for inner in subgraph.node:
                yield from _reads(inner)
