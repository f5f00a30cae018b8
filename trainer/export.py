"""The network as an ONNX graph whose initializers keep their `state_dict` names, so that any member fits in it.

Unoptimised, the exporter's graph computes every missing convolution bias at run time, which keeps ONNX Runtime from
folding BatchNorm (2.2 times slower); optimised, it folds BatchNorm itself and the names are gone. So constants are
folded and unused nodes dropped, but nothing that depends on the value of a parameter or statistic is touched.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from protos.graph import Graph, with_tensors
from protos.stored_ensemble import StoredEnsemble, Tensors
from trainer import evaluate
from trainer.data import Split
from trainer.errors import UserError
from trainer.member import Ensemble
from trainer.network import Network, Statistics

OPSET = 20
TOLERANCE = 1e-4  # of logits between ONNX Runtime and torch, in units of 1 + the largest
VERIFIED_ROWS = 64


class NotExportable(UserError):
    """The network cannot become a graph in which members replace each other, or the graph computes something else."""


class _Served(nn.Module):
    def __init__(self, preprocess: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(self.preprocess(inputs))  # type: ignore[no-any-return]


def graph(network: Network, example: Tensor) -> Graph:
    """The network's graph: `input` (raw rows, as `example` [B, ...]) to `logits` [B, C] or [B, L, C], dynamic in B.

    Tried at once with other weights than the exporter saw. Raises NotExportable.
    """
    try:
        program = _export(network, example)
    except Exception as error:  # torch.export and the exporter raise many kinds, some of them not their own
        reason: BaseException = error
        while reason.__cause__ is not None:  # the outermost one tells which step failed, the innermost one why
            reason = reason.__cause__
        first_line = str(reason).strip().partition("\n")[0]
        raise NotExportable(f"the network cannot be exported to ONNX: {first_line}") from error
    _rename(program.model, network)
    stored_names = set(network.stored_names.values())

    def should_fold(node: Any) -> bool | None:
        """None leaves it to the optimizer."""
        if node.op_type == "Shape" or (node.op_type == "CastLike" and node.inputs[0].name not in stored_names):
            return None  # of a parameter these take the shape or the type, not the value
        depends = any(value is not None and value.name in stored_names for value in node.inputs)
        return False if depends else None

    onnxscript.optimizer.fold_constants(program.model, should_fold=should_fold)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    made = Graph(_without_traces(program.model_proto).SerializeToString())
    _try_other_weights(network, made, example)
    return made


def _export(network: Network, example: Tensor) -> Any:
    served = _Served(network.preprocess, network.module)
    # A batch of 4: 0 and 1 are special to torch.export.
    rows = example[:2].repeat(2, *(1,) * (example.dim() - 1))
    with network.evaluating(), _quiet():
        return torch.onnx.export(
            served.eval(),
            (rows,),
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its steps on stdout and in its log, and warns of its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _rename(model: Any, network: Network) -> None:
    """Gives initializers the names that they have in the bare module's state_dict; of tied ones, the first."""
    for value in list(model.graph.initializers.values()):
        if value.name.startswith("network."):
            name = network.stored_names.get(value.name.removeprefix("network."), value.name)
        else:
            name = value.name
        if name in ("input", "logits"):
            raise NotExportable(f"the network has a parameter called '{name}'; the graph needs that name")
        try:
            value.name = name
        except ValueError as error:
            raise NotExportable(f"two tensors of the graph would be called '{name}'") from error


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what the exporter saw: stack traces with this machine's paths. No reader needs them."""
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


def _try_other_weights(network: Network, made: Graph, example: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = network.initial_weights()
    # Both: a factor, so that activations keep their size in deep networks, and a term, for what starts at zero.
    factor, term = (torch.randn(weights.shape, generator=generator, dtype=weights.dtype) for _ in range(2))
    weights = weights * (1.0 + 0.1 * factor) + 0.01 * term
    statistics = {
        name: tensor * (1.0 + 0.5 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
        for name, tensor in network.initial_statistics().items()
    }
    rows = Split(example[:3], torch.zeros(3, dtype=torch.int64))
    expected = evaluate.logits(network, weights, statistics, rows).numpy()
    tensors = weight_tensors(network, made, weights) | statistic_tensors(made, statistics)
    found = _run(with_tensors(made.model, tensors), "input", rows.inputs.numpy())
    if not _close(found, expected):
        deviation = np.abs(found - expected).max()
        raise NotExportable(f"with other weights the exported graph differs from the network by {deviation:.2e}")


def weight_tensors(network: Network, graph: Graph, weights: Tensor) -> Tensors:
    """Parameters [P] by initializer name. One that the forward pass never uses is not in the graph, nor here."""
    parts = network.unflatten(weights)
    return {name: part.detach().cpu().numpy().copy() for name, part in parts.items() if name in graph.initializers}


def statistic_tensors(graph: Graph, statistics: Statistics) -> Tensors:
    return {name: part.cpu().numpy().copy() for name, part in statistics.items() if name in graph.initializers}


def verify(stored: StoredEnsemble, ensemble: Ensemble, inputs: Tensor, split: str) -> None:
    """Runs every stored member in ONNX Runtime on the split's first inputs [N, ...]. Raises NotExportable."""
    rows = inputs[:VERIFIED_ROWS].cpu().numpy()
    for entry, member in zip(stored.manifest.members, ensemble.members, strict=True):
        found = _run(stored.model(entry), stored.manifest.input.name, rows)
        expected = member.logits[split][: len(found)].cpu().numpy()
        if not _close(found, expected):
            deviation = np.abs(found - expected).max()
            raise NotExportable(f"member '{member.id}' in ONNX Runtime differs from torch by {deviation:.2e}")


def _run(model: onnx.ModelProto, name: str, inputs: np.ndarray) -> np.ndarray:
    """Logits [B, C]; of a next-token network [B·L, C], as `Network.logits` has them."""
    logits = np.asarray(session(model).run(["logits"], {name: inputs})[0])
    return logits.reshape(-1, logits.shape[-1])


def session(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """In ONNX Runtime on a CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= TOLERANCE * (1.0 + np.abs(expected).max()))
