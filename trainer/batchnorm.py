"""Recalibrates BatchNorm: the running statistics of weights that no training step has visited.

Garipov et al. 2018, section 3.3: one pass over the training data. Means and variances of the batches are pooled
exactly, each weighed by its count; nothing is augmented, dropout is off, and only BatchNorm is in training mode.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.data import Split
from trainer.network import Network, Statistics

BATCH_ROWS = 1000  # large, since deeper layers see inputs normalised by each batch's own statistics


@torch.no_grad()
def recalibrate(network: Network, weights: Tensor, split: Split) -> Statistics:
    """The statistics of `weights` [P] over the split; other floating-point buffers as the module has them.

    The variance is the unbiased one, as in a training step on all rows at once.
    """
    statistics = network.initial_statistics()
    layers = {
        name: layer
        for name, layer in network.module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    }
    if not layers:
        return statistics

    counts: dict[str, int] = {}
    hooks = [layer.register_forward_pre_hook(_Count(name, counts)) for name, layer in layers.items()]
    momenta = {name: layer.momentum for name, layer in layers.items()}
    modes = {module: module.training for module in network.module.modules()}
    pooled: dict[str, _Pool] = defaultdict(_Pool)
    try:
        network.module.eval()
        for layer in layers.values():
            layer.train()
            layer.momentum = 1.0  # the buffers then hold exactly the last batch's statistics
        for inputs in split.inputs.split(BATCH_ROWS):
            network.logits(weights, statistics, inputs)
            for name in layers:
                mean, variance = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
                pooled[name].add(counts[name], mean.double(), variance.double())
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.momentum = momenta[name]
        for module, mode in modes.items():
            module.training = mode

    for name, pool in pooled.items():
        statistics[f"{name}.running_mean"].copy_(pool.mean)
        statistics[f"{name}.running_var"].copy_(pool.squares / max(pool.count - 1, 1))
    return statistics


class _Count:
    """A hook: how many values of each channel a layer sees."""

    def __init__(self, name: str, counts: dict[str, int]) -> None:
        self.name, self.counts = name, counts

    def __call__(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        (inputs,) = arguments
        self.counts[self.name] = inputs.numel() // inputs.shape[1]


class _Pool:
    """Mean and sum of squared deviations over batches (Chan, Golub, LeVeque 1979), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, count: int, mean: Tensor, unbiased_variance: Tensor) -> None:
        delta = mean - self.mean
        total = self.count + count
        self.squares = self.squares + unbiased_variance * (count - 1) + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total
