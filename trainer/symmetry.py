"""Which hidden units of a network may change places without changing what it computes.

The network is traced to a graph of ATen operations (torch.fx), and every axis of every tensor in it is either fixed or
indexed by a set of units; operations tie axes together. Where an operation is not understood, what it touches is
fixed: fewer units may move then, and the function stays the same in any case. Source: Ainsworth, Hayase, Srinivasa
2022, "Git Re-Basin", section 2; finding the groups in the graph is ours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.errors import InvalidConfig
from trainer.network import Network
from trainer.reference import first_line


@dataclass(frozen=True)
class Slot:
    """An axis of a tensor that a group permutes: of size · block entries, of which `block` neighbours stay together.

    A block is what a unit becomes in a flattened plane: channel c of [C, H, W] is entries c·H·W to (c + 1)·H·W.
    """

    tensor: str  # name of a parameter, or of a BatchNorm buffer
    axis: int
    block: int


@dataclass(frozen=True)
class Group:
    """Units that share one permutation, and everything that it moves. Groups come in the order of the forward pass."""

    size: int
    slots: tuple[Slot, ...]


def find_groups(network: Network, example: Tensor) -> list[Group]:
    """The permutations that leave the network's function as it is, in evaluation mode. example: raw rows [B, ...].

    Raises InvalidConfig for a network whose forward pass depends on the values that it computes.
    """
    parameters: dict[str, Tensor] = dict(network.module.named_parameters())
    statistics = network.initial_statistics()
    graph = _trace(network, parameters, statistics, example)
    layers = {name for name, layer in network.module.named_modules() if isinstance(layer, _BatchNorm)}
    movable = [name for name in statistics if name.rpartition(".")[0] in layers]
    names = dict(zip(_placeholders(graph), [*parameters, *statistics], strict=False))

    tracker = _Tracker()
    for node, name in names.items():
        if node.users and (name in parameters or name in movable):
            tracker.start(node)
    for node in graph.nodes:
        if node.op == "call_function":
            tracker.follow(node)
        elif node.op == "output":
            tracker.fix_all(node.all_input_nodes)

    slots: dict[_Units, list[Slot]] = {}
    for node in sorted(names, key=_first_use(graph)):
        for axis, index in enumerate(tracker.of(node)):
            if found := _resolve(index):
                root, block = found
                slots.setdefault(root, []).append(Slot(names[node], axis, block))
    return [Group(units.size, tuple(moved)) for units, moved in slots.items()]


def permuted(
    tensors: Mapping[str, Tensor], groups: Sequence[Group], permutations: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The tensors with unit i of each group being what was unit permutation[i]; those in no group as they are."""
    moved = dict(tensors)
    for group, permutation in zip(groups, permutations, strict=True):
        for slot in group.slots:
            if slot.tensor in moved:
                moved[slot.tensor] = move(moved[slot.tensor], slot, permutation)
    return moved


def move(tensor: Tensor, slot: Slot, permutation: Tensor) -> Tensor:
    """The tensor with one of its axes permuted, block by block."""
    blocks: Tensor = tensor.unflatten(slot.axis, (-1, slot.block))
    return blocks.index_select(slot.axis, permutation).reshape(tensor.shape)


def _trace(network: Network, parameters: dict[str, Tensor], statistics: dict[str, Tensor], example: Tensor) -> fx.Graph:
    def forward(parameters: dict[str, Tensor], statistics: dict[str, Tensor], inputs: Tensor) -> Any:
        return functional_call(network.module, (parameters, statistics), (inputs,))

    try:
        with torch.no_grad(), network.evaluating():
            inputs = network.preprocess(example.to(network.placement.device))
            # Functional: no operation writes into what another one reads.
            traced = make_fx(functionalize(forward))(parameters, statistics, inputs)
    except Exception as error:  # the module is the user's code
        raise InvalidConfig(
            f"the network cannot be traced, so its hidden units cannot be permuted: {first_line(error)}"
        ) from error
    traced.graph.eliminate_dead_code()
    return traced.graph


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _first_use(graph: fx.Graph) -> Any:
    position = {node: i for i, node in enumerate(graph.nodes)}
    return lambda node: min((position[user] for user in node.users), default=len(position))


@dataclass(eq=False)
class _Units:
    """An element of a disjoint-set forest: in its parent, `block` neighbouring units of this one are one unit."""

    size: int
    parent: "_Units | None" = None
    block: int = 1
    fixed: bool = False


_Index = tuple[_Units, int] | None  # what indexes an axis: units and the block of each; None: fixed
_Indices = tuple[_Index, ...]  # an entry an axis


def _resolve(index: _Index) -> _Index:
    if index is None:
        return None
    units, block = index
    while units.parent is not None:
        units, block = units.parent, block * units.block
    return None if units.fixed else (units, block)


def _tie(*indices: _Index) -> _Index:
    """One permutation for axes of equal length; the larger block wins. If one is fixed, or blocks cross, all are."""
    first, *rest = indices
    for other in rest:
        a, b = _resolve(first), _resolve(other)
        if a is None or b is None:
            _fix(*indices)
            return None
        (coarse, large), (fine, small) = (a, b) if a[1] >= b[1] else (b, a)
        if large % small:
            _fix(*indices)
            return None
        if coarse is not fine:
            fine.parent, fine.block = coarse, large // small
    return _resolve(first)


def _fix(*indices: _Index) -> None:
    for index in indices:
        if found := _resolve(index):
            found[0].fixed = True


_KEEP = {"clone", "_to_copy", "detach", "alias", "lift_fresh_copy"}
_POINTWISE = {"hardswish", "rsub", "_prelu_kernel"}  # without ATen's own tag
_RESHAPE = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"}
_REDUCE = {"mean.dim", "sum.dim_IntList", "amax.default", "amin.default"}  # symmetric in what they go over
_NORM = {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm"}
_POOL = {  # trailing axes that are pooled over
    "max_pool2d_with_indices": 2, "avg_pool2d": 2, "_adaptive_avg_pool2d": 2, "adaptive_max_pool2d": 2,
    "max_pool3d_with_indices": 3, "avg_pool3d": 3, "_adaptive_avg_pool3d": 3, "adaptive_max_pool3d": 3,
}  # fmt: skip


class _Tracker:
    """What indexes the axes of every tensor in the graph."""

    def __init__(self) -> None:
        self._indices: dict[fx.Node, _Indices] = {}

    def start(self, node: fx.Node) -> None:
        """Each axis of a parameter or a buffer has units of its own, until an operation ties them."""
        self._indices[node] = tuple((_Units(size), 1) if size > 1 else None for size in _shape(node))

    def of(self, node: fx.Node) -> _Indices:
        """One entry an axis; fixed unless something else is known."""
        return self._indices.get(node) or (None,) * len(_shape(node))

    def fix_all(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            _fix(*self._indices.get(node, ()))

    def follow(self, node: fx.Node) -> None:
        """Ties what the operation ties, and says what indexes its result; of several results, the first."""
        name, arguments = _call(node)
        operation = name.partition(".")[0]
        tags = getattr(node.target, "tags", ())
        tagged = torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags
        if operation == "getitem":
            source, number = node.args
            assert isinstance(source, fx.Node)
            if number == 0 and source in self._indices:
                self._indices[node] = self._indices[source]
            else:
                self.fix_all([source])
        elif operation in _KEEP:
            self._indices[node] = self.of(arguments["self"])
        elif operation in ("t", "transpose", "permute"):
            self._indices[node] = self._reordered(operation, arguments)
        elif operation in _RESHAPE:
            self._indices[node] = self._reshaped(arguments["self"], node)
        elif name in _REDUCE:
            self._indices[node] = self._reduced(arguments)
        elif operation in _POOL:
            self._indices[node] = self._pooled(arguments["self"], _POOL[operation])
        elif operation == "slice":
            sliced = _shape(arguments["self"]) != _shape(node)
            self._indices[node] = self._without(arguments["self"], {arguments["dim"]} if sliced else set())
        elif operation == "constant_pad_nd":
            pad = arguments["pad"]  # pairs, from the last axis on; (1, −1) shifts and keeps the length
            padded = {-1 - i // 2 for i, entries in enumerate(pad) if entries}
            self._indices[node] = self._without(arguments["self"], padded)
        elif operation in ("mm", "addmm"):
            self._indices[node] = self._matrix_product(operation, arguments, node)
        elif operation == "convolution" and (indices := self._convolution(arguments)):
            self._indices[node] = indices
        elif operation in _NORM:
            self._indices[node] = self._normalised(arguments)
        elif tagged or operation in _POINTWISE:
            self._indices[node] = self._pointwise(node.all_input_nodes, node)
        else:
            self.fix_all(node.all_input_nodes)

    def _reordered(self, operation: str, arguments: dict[str, Any]) -> _Indices:
        indices = list(self.of(arguments["self"]))
        if operation == "permute":
            return tuple(indices[axis] for axis in arguments["dims"])
        a, b = (arguments["dim0"], arguments["dim1"]) if operation == "transpose" else (0, -1)
        indices[a], indices[b] = indices[b], indices[a]
        return tuple(indices)

    def _reshaped(self, source: fx.Node, node: fx.Node) -> _Indices:
        """Axes that stay keep their units; one that takes in the fixed axes behind it moves in blocks of them."""
        before, after = self.of(source), _shape(node)
        indices: list[_Index] = [None] * len(after)
        for old, new in _runs(_shape(source), after):
            long = [axis for axis in old if _shape(source)[axis] > 1]
            target = [axis for axis in new if after[axis] > 1]
            head, tail = [before[axis] for axis in long[:1]], [before[axis] for axis in long[1:]]
            if len(target) == 1 and not any(map(_resolve, tail)):
                if found := _resolve(*head):
                    units, block = found
                    indices[target[0]] = units, block * math.prod(_shape(source)[axis] for axis in long[1:])
            else:
                _fix(*head, *tail)
        return tuple(indices)

    def _reduced(self, arguments: dict[str, Any]) -> _Indices:
        indices = self.of(arguments["self"])
        over = {axis % len(indices) for axis in arguments["dim"] or range(len(indices))}
        if arguments["keepdim"]:
            return tuple(None if axis in over else index for axis, index in enumerate(indices))
        return tuple(index for axis, index in enumerate(indices) if axis not in over)

    def _pooled(self, source: fx.Node, planes: int) -> _Indices:
        indices = self.of(source)
        _fix(*indices[-planes:])
        return (*indices[:-planes], *(None,) * planes)

    def _without(self, source: fx.Node, changed: set[int]) -> _Indices:
        """Axes that are cut or padded are fixed."""
        indices = list(self.of(source))
        for axis in changed:
            _fix(indices[axis])
            indices[axis] = None
        return tuple(indices)

    def _matrix_product(self, operation: str, arguments: dict[str, Any], node: fx.Node) -> _Indices:
        left, right = ("self", "mat2") if operation == "mm" else ("mat1", "mat2")
        (rows, inner), (other, columns) = self.of(arguments[left]), self.of(arguments[right])
        _tie(inner, other)
        indices = (rows, columns)
        if operation == "addmm":
            bias = self.of(arguments["self"])
            return self._broadcast([(bias, _shape(arguments["self"])), (indices, _shape(node))], _shape(node))
        return indices

    def _convolution(self, arguments: dict[str, Any]) -> _Indices | None:
        """Ordinary or depthwise; None for any other."""
        (batch, channels, *plane), (outputs, inputs, *kernel) = (
            self.of(arguments["input"]),
            self.of(arguments["weight"]),
        )
        weight = _shape(arguments["weight"])
        if arguments["transposed"] or arguments["groups"] not in (1, weight[0]):
            return None
        _fix(batch, *plane, *kernel)
        if arguments["groups"] == 1:
            _tie(channels, inputs)
        elif weight[0] == _shape(arguments["input"])[1]:
            _tie(channels, outputs)
        else:
            return None
        if arguments["bias"] is not None:
            _tie(outputs, *self.of(arguments["bias"]))
        return (None, outputs, *(None,) * len(plane))

    def _normalised(self, arguments: dict[str, Any]) -> _Indices:
        batch, channels, *plane = self.of(arguments["input"])
        vectors = [arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
        channels = _tie(channels, *(self.of(vector)[0] for vector in vectors if vector is not None))
        return batch, channels, *plane

    def _pointwise(self, nodes: Sequence[fx.Node], node: fx.Node) -> _Indices:
        return self._broadcast([(self.of(source), _shape(source)) for source in nodes], _shape(node))

    def _broadcast(self, operands: list[tuple[_Indices, torch.Size]], shape: torch.Size) -> _Indices:
        """Axes that meet are tied; one of length 1 is repeated, and meets nothing."""
        result: list[_Index] = []
        for axis in range(-len(shape), 0):
            meeting = [
                indices[axis] for indices, sizes in operands if len(sizes) >= -axis and sizes[axis] == shape[axis] > 1
            ]
            result.append(_tie(*meeting) if meeting else None)
        return tuple(result)


def _call(node: fx.Node) -> tuple[str, dict[str, Any]]:
    """The operation as NAME.OVERLOAD, and its arguments by name; other functions than ATen's have no arguments here."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", ""), {}
    if target.namespace != "aten":
        return "", {}
    arguments = {
        argument.name: node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for i, argument in enumerate(target._schema.arguments)
    }
    return str(target).removeprefix("aten."), arguments


def _shape(node: fx.Node) -> torch.Size:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else torch.Size()


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes, from the left, that have equally many entries before and after."""
    runs = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        sizes = [1, 1]
        while True:
            if sizes[0] <= sizes[1] and i < len(before):
                sizes[0] *= before[i]
                old.append(i)
                i += 1
            elif j < len(after):
                sizes[1] *= after[j]
                new.append(j)
                j += 1
            else:
                sizes[0] *= before[i]
                old.append(i)
                i += 1
            if sizes[0] == sizes[1]:
                break
        runs.append((old, new))
    return runs
