from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from trainer import batchnorm, evaluate, export
from trainer.data import Split
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


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 16), nn.ReLU(), nn.Linear(16, 5))


@pytest.mark.parametrize("factory", [Residual, perceptron])
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
            graph.with_tensors(tensors).SerializeToString(), providers=["CPUExecutionProvider"]
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
    assert [node.op_type for node in graph.model.graph.node].count("BatchNormalization") == 2
    assert "unused" not in export.weight_tensors(network, graph, network.initial_weights())


def test_the_file_tells_nothing_of_the_machine_it_was_made_on() -> None:
    network = Network(perceptron, nn.Identity())
    data = export.graph(network, torch.zeros(2, 3, 6, 6)).model.SerializeToString()
    for needle in (b"site-packages", b"networks.py", str(Path(__file__).parent).encode(), b"stack_trace"):
        assert needle not in data
