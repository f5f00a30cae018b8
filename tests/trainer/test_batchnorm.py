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


class Odd(nn.Module):
    """A BatchNorm that runs twice, one that is called by keyword, one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 4)
        self.twice, self.keyword, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x.flatten(1))
        y = self.twice(self.twice(x) * 3 + 1)
        return self.keyword(input=y)  # type: ignore[no-any-return]


def test_layers_that_run_twice_by_keyword_or_never() -> None:
    network, split = Network(Odd, nn.Identity()), random_split(301)
    weights = network.initial_weights()
    found = batchnorm.recalibrate(network, weights, split)
    linear = network.unflatten(weights)
    x = nn.functional.linear(split.inputs.flatten(1), linear["linear.weight"], linear["linear.bias"])
    y = (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5) * 3 + 1
    both = torch.cat([x, y])
    torch.testing.assert_close(found["twice.running_mean"], both.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["twice.running_var"], both.var(0), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found["keyword.running_var"], torch.ones(4))
    assert torch.equal(found["unused.running_mean"], torch.zeros(4))


def test_no_number_of_rows_leaves_a_batch_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "BATCH_ROWS", 10)
    network = Network(Odd, nn.Identity())
    for rows in (11, 21, 101):  # one more than full batches
        found = batchnorm.recalibrate(network, network.initial_weights(), random_split(rows))
        assert all(tensor.isfinite().all() for tensor in found.values())
