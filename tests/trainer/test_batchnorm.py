import pytest
import torch
from torch import nn

from tests.trainer.networks import batchnorm_network, random_split
from trainer import batchnorm
from trainer.network import Network


def one_pass(network: Network, weights: torch.Tensor, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """All rows as one batch, in torch's own training mode with momentum 1 and no dropout."""
    module = network._factory()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(network.unflatten(weights)[name])
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    module.train()(inputs)
    return {name: buffer for name, buffer in module.named_buffers() if "running" in name}


def test_statistics_equal_one_pass_over_all_rows() -> None:
    network, split = batchnorm_network(dropout=0.5), random_split(301)
    weights = network.initial_weights()
    expected = one_pass(network, weights, split.inputs)
    found = batchnorm.recalibrate(network, weights, split)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch_rows", [300, 128, 64, 7])
def test_batches_are_pooled_exactly_whatever_their_size(batch_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Exact for the first layer, whose inputs do not depend on another layer's batch statistics.
    monkeypatch.setattr(batchnorm, "BATCH_ROWS", batch_rows)
    network, split = batchnorm_network(), random_split(301)
    weights = network.initial_weights()
    expected = one_pass(network, weights, split.inputs)
    found = batchnorm.recalibrate(network, weights, split)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_the_module_is_left_as_it_was() -> None:
    network = batchnorm_network(dropout=0.5)
    network.module.train()
    network.module[3].eval()  # type: ignore[index]
    modes = [module.training for module in network.module.modules()]
    buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers() if "running" in name}
    batchnorm.recalibrate(network, network.initial_weights(), random_split(16))
    assert [module.training for module in network.module.modules()] == modes
    assert [m.momentum for m in network.module.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.1]
    for name, buffer in buffers.items():
        assert torch.equal(network.module.get_buffer(name), buffer)


def test_a_network_without_batchnorm_has_no_statistics() -> None:
    network = Network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), nn.Identity())
    assert batchnorm.recalibrate(network, network.initial_weights(), random_split(8)) == {}
