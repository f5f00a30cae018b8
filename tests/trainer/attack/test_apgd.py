"""Our wrapper gives pyautoattack the same network that a stranger would give it."""

import math

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import nn

from tests.trainer.attack.two_classes import linear, ones
from trainer.attack import apgd
from trainer.attack.ball import Ball
from trainer.attack.scores import judge
from trainer.attack.target import Target


def network() -> nn.Module:
    """Of rows [B, 1, 6, 6] in [0, 1], five classes; trained by nobody, so about half of the rows fall."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5)).eval()
    return module


class InLevels(nn.Module):
    """The network rounded as ours is, of rows by way of levels and of logits as log-probabilities in double: fifteen
    steps make more of last digits, which differ between CPUs.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.module(rows * 255.0 / 255).double().log_softmax(1))


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 6.0), ("l2", 20.0)])
@pytest.mark.parametrize("rivals", [0, 3])
def test_on_a_single_member_it_is_pyautoattacks_on_the_bare_network(norm: str, epsilon: float, rivals: int) -> None:
    module = network()
    pixels = torch.randint(0, 256, (40, 1, 6, 6), generator=torch.Generator().manual_seed(1)).float()
    targets = module(pixels / 255).argmax(1)
    options = {"n_iter": 15, "norm": apgd.NORMS[norm], "eps": epsilon / 255, "seed": 3, "device": "cpu"}
    alike = InLevels(module)
    if rivals:
        theirs = APGDAttack_targeted(alike, n_target_classes=rivals, **options).perturb(pixels / 255, targets)
    else:
        theirs = APGDAttack(alike, loss="ce", **options).perturb(pixels / 255, targets)
    alone = Target([lambda rows: module(rows / 255)], torch.ones(1, dtype=torch.float64))
    ours = apgd.attack(alone, pixels, targets, Ball(norm, epsilon, 0.0, 255.0), 15, rivals, seed=3)
    fooled = module(theirs).argmax(1) != targets
    assert 0.1 < float(fooled.double().mean()) < 0.9
    assert torch.equal(~judge(alone, ours, targets).mean_N, fooled)
    torch.testing.assert_close(ours / 255, theirs, rtol=0, atol=1e-4)


def test_of_a_linear_mean_it_finds_the_boundary_exactly_when_it_is_in_reach_without_bounds_of_pixels() -> None:
    clean = torch.tensor([[3.0, -2.0], [0.5, 40.0]])
    for norm, dual in (("linf", 1), ("l2", 2)):
        w = torch.tensor([0.6, -0.8])
        reach = float(w.norm(p=dual))
        for part, right in ((0.95, False), (1.05, True)):
            for row in clean:
                b = part * 2.0 * reach - float(w @ row)
                whole = linear((w.tolist(), b), (w.tolist(), b))
                ball = Ball(norm, 2.0, -math.inf, math.inf)
                moved = apgd.attack(whole, row[None], ones(1), ball, 40, 0, seed=0)
                assert bool(judge(whole, moved, ones(1)).mean_N[0]) == right
