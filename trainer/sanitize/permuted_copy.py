"""The other end of a curve from a single network: the network itself, its hidden units in another order.

Zhao et al. 2020 join two tampered networks; of a single one, a permuted copy is the second. Here the order is random;
Peng et al. 2025, "Circumventing Backdoor Space via Weight Symmetry", choose the one whose activations are farthest.
"""

import torch
from torch import Tensor

from trainer.align import Aligned, check_function
from trainer.errors import InvalidConfig
from trainer.network import Network
from trainer.symmetry import find_groups, permuted


def permuted_copy(network: Network, weights: Tensor, example: Tensor) -> Tensor:
    """Other weights [P] that compute the same: every group of hidden units in an order from torch's global generator.

    example: raw rows [B, ...], on which that is checked. Raises InvalidConfig for a network that cannot be traced, or
    has no units that may change places.
    """
    groups = [group for group in find_groups(network, example) if group.size > 1]
    if not groups:
        raise InvalidConfig(
            "no hidden units of this network may change places, so it has no permuted copy; expected --second FILE"
        )
    permutations = [torch.randperm(group.size).to(weights.device) for group in groups]
    statistics = network.initial_statistics()
    copy = Aligned(
        network.flatten(permuted(network.unflatten(weights), groups, permutations)),
        permuted(statistics, groups, permutations),
    )
    check_function(network, Aligned(weights, statistics), copy, example)
    return copy.weights
