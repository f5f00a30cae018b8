"""Fast Geometric Ensembling: Garipov et al. 2018, Algorithm 1.

SGD from a trained network under a cyclical rate; the weights are collected whenever the rate is at its least.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainer.config import FgeConfig, SgdConfig
from trainer.data import Split
from trainer.errors import InvalidConfig
from trainer.network import Network
from trainer.progress import Stage
from trainer.schedule import triangular
from trainer.train import check_finite, set_rate

# Called after every iteration: its number from 1, its learning rate, and the weights [P], not to be kept.
Observer = Callable[[int, float, Tensor], None]


@dataclass(frozen=True)
class Snapshot:
    weights: Tensor  # [P]
    cycle: int  # 0 for the first
    epoch: float  # since FGE began


def cycle_iterations(split: Split, config: FgeConfig, sgd: SgdConfig) -> int:
    """c. Raises InvalidConfig if it is odd: no iteration would fall on α2."""
    epoch_iterations = split.batch_count(sgd.batch_size)
    c = config.cycle_epochs * epoch_iterations
    if c % 2:
        raise InvalidConfig(
            f"fge.cycle_epochs {config.cycle_epochs} of {epoch_iterations} iterations make a cycle of {c}; "
            f"expected an even number"
        )
    return c


def collect(
    network: Network,
    split: Split,
    start: Tensor,
    config: FgeConfig,
    sgd: SgdConfig,
    stage: Stage,
    observe: Observer = lambda i, rate, weights: None,
) -> list[Snapshot]:
    """The snapshots of one run from `start` [P], each taken right after the step at α2: mod(i, c) = c/2.

    Momentum starts at zero. Raises InvalidConfig if a cycle has an odd number of iterations, TrainingDiverged.
    """
    epoch_iterations, c = split.batch_count(sgd.batch_size), cycle_iterations(split, config, sgd)
    weights = start.clone()
    statistics = network.initial_statistics()
    optimizer = torch.optim.SGD([weights], lr=config.alpha_1, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    snapshots: list[Snapshot] = []
    i = 0
    for epoch in range(config.epochs):
        for inputs, targets in split.batches(sgd.batch_size):
            i += 1
            rate = triangular(i, c, config.alpha_1, config.alpha_2)
            loss, weights.grad = network.gradient(weights, statistics, inputs, targets, cross_entropy)
            set_rate(optimizer, rate)
            optimizer.step()
            if i % c == c // 2:
                snapshots.append(Snapshot(weights.detach().clone(), len(snapshots), i / epoch_iterations))
            observe(i, rate, weights.detach())
        stage.epoch(epoch + 1, check_finite(loss, [weights], "fge", epoch))
    return snapshots
