"""The network as an ONNX graph whose initializers keep their `state_dict` names, so that any member fits in it.

Source of the two steps after the exporter: unoptimised, it computes every missing convolution bias at run time,
which keeps ONNX Runtime from folding BatchNorm (2.2 times slower); optimised, it folds BatchNorm itself and the
names are gone. Folding constants and dropping unused nodes keeps the names and gives the full speed.
"""

import contextlib
import io
import logging

import numpy as np
import onnx
import onnxruntime
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from protos.graph import Graph
from protos.stored_ensemble import StoredEnsemble, Tensors
from trainer.member import Ensemble, Member
from trainer.network import Network, Statistics

OPSET = 20
TOLERANCE = 1e-4  # of logits, relative and absolute, between ONNX Runtime and torch


class ExportMismatch(RuntimeError):
    """The exported files compute something else than the network: nothing was written."""


class _Served(nn.Module):
    def __init__(self, preprocess: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(self.preprocess(inputs))  # type: ignore[no-any-return]


def graph(network: Network, example: Tensor) -> Graph:
    """The network's graph: `input` (raw rows, as `example` [B, ...]) to `logits` [B, C], dynamic in B."""
    served = _Served(network.preprocess, network.module).eval()
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its steps there
        program = torch.onnx.export(
            served,
            (example[:2].repeat(2, *(1,) * (example.dim() - 1)),),  # a batch of 4: 0 and 1 are special to torch.export
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    _strip_prefix(model, "network.")
    # What the exporter saw: stack traces with this machine's paths. No reader needs them.
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    return Graph(model.SerializeToString())


def _strip_prefix(model: onnx.ModelProto, prefix: str) -> None:
    """Gives initializers the names that they have in the bare module's state_dict."""
    names = {
        tensor.name: tensor.name.removeprefix(prefix)
        for tensor in model.graph.initializer
        if tensor.name.startswith(prefix)
    }
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for value in model.graph.value_info:
        value.name = names.get(value.name, value.name)


def weight_tensors(network: Network, graph: Graph, weights: Tensor) -> Tensors:
    """Parameters [P] by initializer name. One that the forward pass never uses is not in the graph, nor here."""
    parts = network.unflatten(weights)
    return {name: part.detach().cpu().numpy().copy() for name, part in parts.items() if name in graph.initializers}


def statistic_tensors(graph: Graph, statistics: Statistics) -> Tensors:
    return {name: part.cpu().numpy().copy() for name, part in statistics.items() if name in graph.initializers}


def verify(stored: StoredEnsemble, ensemble: Ensemble, inputs: Tensor, split: str) -> float:
    """Runs every stored member in ONNX Runtime on the split's inputs [N, ...]; returns the greatest deviation.

    Raises ExportMismatch if a logit differs from torch's by more than TOLERANCE.
    """
    greatest = 0.0
    for entry, member in zip(stored.manifest.members, ensemble.members, strict=True):
        found = _run(stored.model(entry), stored.manifest.input.name, inputs.numpy())
        greatest = max(greatest, _compare(member, found, split))
    return greatest


def _run(model: onnx.ModelProto, name: str, inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {name: inputs})[0])


def _compare(member: Member, found: np.ndarray, split: str) -> float:
    expected = member.logits[split].numpy()
    deviation = np.abs(found - expected)
    if not (deviation <= TOLERANCE * (1.0 + np.abs(expected))).all():
        raise ExportMismatch(f"member '{member.id}' in ONNX Runtime differs from torch by {deviation.max():.2e}")
    return float(deviation.max())
