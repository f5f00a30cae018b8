from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from protos.graph import with_tensors
from trainer import batchnorm, evaluate, export
from trainer.data import Split
from trainer.export import NotExportable
from trainer.network import Network, Normalise


class Residual(nn.Module):
    """BatchNorm, dropout, a parameter that nothing uses, and a buffer that is no statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.arange(8.0).view(1, 8, 1, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.body(x) + self.get_buffer("shift")
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Weights that are transposed, reshaped and split before use."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, dim_feedforward=16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.reshape(-1, 9, 12)).mean(1))  # type: ignore[no-any-return]


class TiedLayers(nn.Module):
    """One layer under two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(108, 16)
        self.norm = nn.BatchNorm1d(16)
        self.again = self.norm
        self.second = nn.Linear(16, 16)
        self.third = nn.Linear(16, 16)
        self.third.weight = self.second.weight
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.relu(self.first(x.flatten(1))))
        x = self.again(torch.relu(self.third(torch.relu(self.second(x)))))
        return self.head(x)  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """A weight that is computed from two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 108) / 10)
        self.log_gain = nn.Parameter(torch.zeros(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.weight * self.log_gain.exp())


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
        nn.utils.parametrizations.weight_norm(nn.Linear(8 * 16, 5)),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 16), nn.ReLU(), nn.Linear(16, 5))


@pytest.mark.parametrize("factory", [Residual, perceptron, Attention, TiedLayers, Scaled, group_norm])
def test_other_weights_in_the_exported_graph_compute_what_torch_does(factory: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = Network(factory, Normalise([100.0, 110.0, 120.0], [50.0, 60.0, 70.0], 4))
    pixels = torch.randint(0, 256, (12, 3, 6, 6), dtype=torch.uint8)
    split = Split(pixels, torch.zeros(12, dtype=torch.int64))
    graph = export.graph(network, pixels)
    assert {name: (str(t.dtype), t.shape) for name, t in graph.inputs.items()} == {"input": ("uint8", (-1, 3, 6, 6))}
    assert {name: t.shape for name, t in graph.outputs.items()} == {"logits": (-1, 5)}

    for _ in range(2):
        weights = network.initial_weights()  # not those that the exporter saw
        statistics = batchnorm.recalibrate(network, weights, split)
        tensors = export.weight_tensors(network, graph, weights) | export.statistic_tensors(graph, statistics)
        session = onnxruntime.InferenceSession(
            with_tensors(graph.model, tensors).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for rows in (1, 5, 12):
            found = session.run(["logits"], {"input": pixels[:rows].numpy()})[0]
            expected = evaluate.logits(network, weights, statistics, split)[:rows].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_initializers_keep_their_names_and_batchnorm_stays() -> None:
    network = Network(Residual, nn.Identity())
    graph = export.graph(network, torch.zeros(2, 3, 6, 6))
    names = {name for name in network.module.state_dict() if not name.endswith("num_batches_tracked")}
    assert names - {"unused"} <= graph.initializers.keys()
    operators = [node.op_type for node in graph.model.graph.node]
    assert operators.count("BatchNormalization") == 2
    # What the exporter leaves where a convolution has no bias would be computed at every run.
    assert not {"CastLike", "Expand"} & set(operators)
    assert "unused" not in export.weight_tensors(network, graph, network.initial_weights())


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5] * 2 if x.sum() > 0 else x.flatten(1)[:, :5]


class NamedLikeTheInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5] * self.input


def test_a_network_that_cannot_be_exported_is_refused_in_one_line() -> None:
    for factory, message in (
        (lambda: nn.Sequential(perceptron(), Branches()), "cannot be exported to ONNX"),
        (NamedLikeTheInput, "a parameter called 'input'"),
    ):
        with pytest.raises(NotExportable, match=message) as caught:
            export.graph(Network(factory, nn.Identity()), torch.ones(2, 3, 6, 6))
        assert "\n" not in str(caught.value)


def test_a_graph_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "weight_tensors", lambda network, graph, weights: {})  # the exporter's own weights stay
    with pytest.raises(NotExportable, match="with other weights the exported graph differs"):
        export.graph(Network(perceptron, nn.Identity()), torch.ones(2, 3, 6, 6))


def test_exporting_leaves_the_modules_modes_alone() -> None:
    network = Network(Residual, nn.Identity())
    network.module.train()
    export.graph(network, torch.zeros(2, 3, 6, 6))
    assert all(module.training for module in network.module.modules())


def test_the_file_tells_nothing_of_the_machine_it_was_made_on() -> None:
    network = Network(perceptron, nn.Identity())
    data = export.graph(network, torch.zeros(2, 3, 6, 6)).model.SerializeToString()
    for needle in (b"site-packages", b"networks.py", str(Path(__file__).parent).encode(), b"stack_trace"):
        assert needle not in data
