"""The ways of fitting temperatures that the trainer does not have, against a slow grid."""

import itertools
import math

import pytest
import torch

from benchmarks.temperatures import Fitted, common, common_with_mean
from benchmarks.uncertainty import Rows
from trainer import evaluate

GRID = [math.exp(0.1 * i) for i in range(-15, 16)]


def rows() -> Rows:
    """Four members, each too sure, that share half of what they know."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(5, (400,), generator=generator)
    signal = 2.0 * torch.nn.functional.one_hot(targets, 5) + torch.randn(400, 5, generator=generator)
    return Rows(3.0 * (signal + 1.5 * torch.randn(4, 400, 5, generator=generator)), targets)


def nll(member: float, mean: float) -> float:
    return evaluate.quality(Fitted(torch.full((4,), member), mean).answer(rows()), rows().targets_N).nll


def test_the_common_temperature_has_the_least_nll_of_all() -> None:
    fitted = common(rows())
    assert fitted.mean == 1.0
    (found,) = set(fitted.members.tolist())
    assert min(GRID) < found < max(GRID)
    assert nll(found, 1.0) <= min(nll(value, 1.0) for value in GRID)
    assert found == pytest.approx(min((nll(found * factor, 1.0), found * factor) for factor in (0.99, 1.0, 1.01))[1])


def test_common_with_mean_together_have_the_least_nll_of_all_pairs() -> None:
    fitted = common_with_mean(rows())
    (found,) = set(fitted.members.tolist())
    assert nll(found, fitted.mean) <= min(nll(*pair) for pair in itertools.product(GRID[::2], GRID[::2])) + 1e-9
    assert nll(found, fitted.mean) < nll(float(common(rows()).members[0]), 1.0)
