"""Aligns one network's hidden units with another's, so that the way between their weights is shorter and lower.

Weight matching: Ainsworth, Hayase, Srinivasa 2022, "Git Re-Basin: Merging models modulo permutation symmetries",
section 3.2 and Algorithm 1. Which units may change places is found in `symmetry.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trainer.network import Network, Statistics
from trainer.symmetry import Group, find_groups, move, permuted

ROUNDING = 1e-4  # of the largest logit: sums in another order differ by less, a wrong permutation by far more
SWEEPS = 100  # at most; a few are enough


@dataclass(frozen=True)
class Aligned:
    weights: Tensor  # [P]
    statistics: Statistics


def align(network: Network, reference: Tensor, weights: Tensor, statistics: Statistics, example: Tensor) -> Aligned:
    """The network `weights` [P], `statistics` with its hidden units in the order nearest to those of `reference` [P].

    It computes what it did before (on `example`, raw rows [B, ...], that is checked in evaluation mode), and is never
    farther from the reference. Order of the groups: from torch's global generator.
    Raises InvalidConfig for a network that cannot be traced.
    """
    groups = find_groups(network, example)
    permutations = match(groups, network.unflatten(reference.double()), network.unflatten(weights.double()))
    aligned = Aligned(
        network.flatten(permuted(network.unflatten(weights), groups, permutations)),
        permuted(statistics, groups, permutations),
    )
    check_function(network, Aligned(weights, statistics), aligned, example)
    return aligned


def match(groups: Sequence[Group], reference: dict[str, Tensor], weights: dict[str, Tensor]) -> list[Tensor]:
    """A permutation [size] a group; ⟨reference, weights⟩ is then at a local maximum. Takes float64 tensors by name.

    Algorithm 1: coordinate descent from the order as it is.
    """
    return _Matching(groups, reference, weights).descend()


class _Matching:
    def __init__(self, groups: Sequence[Group], reference: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        self._groups, self._reference, self._weights = groups, reference, weights
        self._device = next(iter(weights.values())).device
        # The statistics' slots move with their group and have no say in the matching.
        self._slots = [[slot for slot in group.slots if slot.tensor in weights] for group in groups]
        self._movers: dict[str, set[int]] = {}  # the groups with an axis of a tensor, by its name
        for number, slots in enumerate(self._slots):
            for slot in slots:
                self._movers.setdefault(slot.tensor, set()).add(number)

    def descend(self) -> list[Tensor]:
        """One group after the other, in random order, until none changes."""
        permutations = [torch.arange(group.size, device=self._device) for group in self._groups]
        for _ in range(SWEEPS):
            changed = False
            for number in torch.randperm(len(self._groups)).tolist():
                names = sorted({slot.tensor for slot in self._slots[number]})
                trial = list(permutations)
                trial[number] = self._assign(number, permutations)
                # A group with two axes of one tensor makes the problem quadratic: the assignment may then be worse.
                before, after = self._similarity(permutations, names), self._similarity(trial, names)
                if after > before and not math.isclose(after, before, rel_tol=1e-12):
                    permutations, changed = trial, True
            if not changed:
                break
        return permutations

    def _similarity(self, permutations: list[Tensor], names: list[str]) -> float:
        """⟨reference, permuted weights⟩, over the named tensors."""
        return math.fsum(float(self._reference[name].mul(self._moved(name, permutations)).sum()) for name in names)

    def _assign(self, number: int, permutations: list[Tensor]) -> Tensor:
        """The best permutation of one group, with the others' as they are."""
        size = self._groups[number].size
        gains = torch.zeros(size, size, dtype=torch.float64, device=self._device)
        for slot in self._slots[number]:
            theirs = self._moved(slot.tensor, permutations, besides=(number, slot.axis))
            gains += _units(self._reference[slot.tensor], slot.axis, size) @ _units(theirs, slot.axis, size).T
        _, columns = linear_sum_assignment(gains.cpu().numpy(), maximize=True)
        return torch.from_numpy(np.asarray(columns, dtype=np.int64)).to(self._device)

    def _moved(self, name: str, permutations: list[Tensor], besides: tuple[int, int] | None = None) -> Tensor:
        tensor = self._weights[name]
        for number in sorted(self._movers[name]):
            for slot in self._slots[number]:
                if slot.tensor == name and (number, slot.axis) != besides:
                    tensor = move(tensor, slot, permutations[number])
        return tensor


def _units(tensor: Tensor, axis: int, size: int) -> Tensor:
    """[size, all that belongs to a unit]."""
    return tensor.movedim(axis, 0).reshape(size, -1)


@torch.no_grad()
def check_function(network: Network, before: Aligned, after: Aligned, example: Tensor) -> None:
    """Raises RuntimeError if the two answer differently, by more than rounding: our bug, and nothing to go on with."""
    with network.evaluating(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = network.logits(before.weights, before.statistics, example)
        logits = network.logits(after.weights, after.statistics, example)
    difference, scale = float((logits - expected).abs().max()), max(1.0, float(expected.abs().max()))
    if not difference <= ROUNDING * scale:
        raise RuntimeError(f"permuting hidden units changed the logits by {difference:.3g}, of {scale:.3g} at most")
