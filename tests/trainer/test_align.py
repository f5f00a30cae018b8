from itertools import permutations

import pytest
import torch
from torch import nn

from tests.trainer.networks import batchnorm_network, random_split
from tests.trainer.test_symmetry import NETWORKS, Tied
from trainer import align, batchnorm
from trainer.network import Network
from trainer.symmetry import find_groups, permuted

pytestmark = pytest.mark.usefixtures("one_thread")

# The others have the same operations, in more layers.
SMALL = ["small_conv", "fully_connected", "conv3_fc3", "preresnet", "resnet_cifar", "wide_resnet"]
LARGE = ["preresnet, bottleneck", "torchvision resnet18"]


def example_of(name: str) -> tuple[Network, torch.Tensor]:
    factory, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    return Network(factory, nn.Identity()), torch.randn(4, *shape)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_a_permuted_copy_is_put_back_exactly(name: str) -> None:
    network, example = example_of(name)
    groups = find_groups(network, example)
    reference, statistics = network.initial_weights(), network.initial_statistics()
    for tensor in statistics.values():
        tensor.uniform_(0.5, 1.5)
    shuffles = [torch.randperm(group.size) for group in groups]
    copy = network.flatten(permuted(network.unflatten(reference), groups, shuffles))
    found = align.align(network, reference, copy, permuted(statistics, groups, shuffles), example)
    assert not torch.equal(copy, reference)
    assert torch.equal(found.weights, reference)
    for tensor_name, tensor in statistics.items():
        assert torch.equal(found.statistics[tensor_name], tensor)


@pytest.mark.parametrize("name", SMALL)
def test_two_networks_come_nearer_and_compute_what_they_did(name: str) -> None:
    network, example = example_of(name)
    reference, weights, statistics = network.initial_weights(), network.initial_weights(), network.initial_statistics()
    for tensor in statistics.values():
        tensor.uniform_(0.5, 1.5)
    found = align.align(network, reference, weights, statistics, example)
    assert (found.weights - reference).norm() < (weights - reference).norm()
    with torch.no_grad(), network.evaluating():
        expected = network.logits(weights, statistics, example)
        logits = network.logits(found.weights, found.statistics, example)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_network_is_never_farther_afterwards_even_where_a_group_has_two_axes_of_one_tensor(seed: int) -> None:
    torch.manual_seed(seed)
    network = Network(Tied, nn.Identity())
    reference, weights = network.initial_weights(), network.initial_weights()
    once = align.align(network, reference, weights, {}, torch.randn(4, 5)).weights
    assert (once - reference).norm() <= (weights - reference).norm()
    twice = align.align(network, reference, once, {}, torch.randn(4, 5)).weights
    assert (twice - reference).norm() <= (once - reference).norm()


def test_one_hidden_layer_is_matched_as_well_as_by_trying_all_permutations() -> None:
    torch.manual_seed(0)
    network = Network(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), nn.Identity())
    reference, weights = network.initial_weights(), network.initial_weights()
    groups = find_groups(network, torch.randn(2, 3))
    tensors = network.unflatten(weights)
    distances = [
        float((network.flatten(permuted(tensors, groups, [torch.tensor(order)])) - reference).norm())
        for order in permutations(range(5))
    ]
    found = align.align(network, reference, weights, {}, torch.randn(2, 3)).weights
    assert float((found - reference).norm()) == pytest.approx(min(distances), rel=1e-6)


def test_recalibrated_statistics_of_the_aligned_weights_are_the_permuted_ones() -> None:
    torch.manual_seed(0)
    network, split = batchnorm_network(), random_split(40)
    reference, weights = network.initial_weights(), network.initial_weights()
    found = align.align(network, reference, weights, batchnorm.recalibrate(network, weights, split), split.inputs[:5])
    for name, tensor in batchnorm.recalibrate(network, found.weights, split).items():
        torch.testing.assert_close(tensor, found.statistics[name])


def test_a_changed_function_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, split = batchnorm_network(), random_split(8)
    forget = find_groups(network, split.inputs[:2])
    forget[0] = type(forget[0])(forget[0].size, forget[0].slots[:1])
    monkeypatch.setattr(align, "find_groups", lambda *_: forget)
    with pytest.raises(RuntimeError, match="changed the logits"):
        align.align(
            network, network.initial_weights(), network.initial_weights(), network.initial_statistics(), split.inputs
        )
