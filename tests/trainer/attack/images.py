"""Linear ensembles of images, whose members can be fooled one at a time: two_classes.py in the shape of Square."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from tests.trainer.attack import two_classes
from tests.trainer.attack.two_classes import ones
from trainer.attack.ball import Ball
from trainer.attack.scores import judge
from trainer.attack.target import Target


def free(norm: str = "linf", epsilon: float = 1.0) -> Ball:
    """Without bounds."""
    return Ball(norm, epsilon, -torch.inf, torch.inf)


def linear(weights: Sequence[Tensor], lead: float) -> Target:
    """Members in which class 1, which is right, leads by `lead` + w_m · x."""
    return two_classes.linear(*((w.flatten().tolist(), lead) for w in weights))


def opposed(members: int, shape: Sequence[int]) -> list[Tensor]:
    """Directions that point apart, each of L1 norm 20."""
    draws = torch.randn(members, *shape, generator=torch.Generator().manual_seed(0))
    return [20 * w / w.abs().sum() for w in draws - draws.mean(0)]


def at_odds(members: int, shape: Sequence[int]) -> Target:
    """Members of which any one can be fooled within L∞ 1 around 0, and never two at once.

    One is fooled where ‖w_m‖₁ > lead; two would need ‖w_i + w_j‖₁ / 2 > lead.
    """
    weights = opposed(members, shape)
    two = max(float((v + w).abs().sum()) / 2 for v, w in combinations(weights, 2))
    return linear(weights, two + 0.1 * (20 - two))


def right(target: Target, rows: Tensor) -> Tensor:
    """[M, N] bool: which members are."""
    return judge(target, rows, ones(len(rows))).members_MN
