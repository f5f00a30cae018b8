"""Linear classifiers of two classes, of which everything has a closed form."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from trainer.attack.target import Target


def linear(*members: tuple[Sequence[float], float]) -> Target:
    """Each member w, b says class 1 of x with probability sigmoid(w·x + b), and class 1 is right."""
    networks = [partial(_logits, torch.tensor(w, dtype=torch.float64), b) for w, b in members]
    return Target(networks, torch.ones(len(networks), dtype=torch.float64))


def _logits(w: Tensor, b: float, rows: Tensor) -> Tensor:
    score = rows.flatten(1).double() @ w + b
    return torch.stack([torch.zeros_like(score), score], 1)


def ones(rows: int) -> Tensor:
    return torch.ones(rows, dtype=torch.int64)
