"""Attacks on linear classifiers, where the best attack is known."""

import math

import pytest
import torch

from tests.trainer.attack.two_classes import linear, ones
from trainer.attack import arc, pgd
from trainer.attack.ball import Ball
from trainer.attack.scores import judge

L2, LINF = Ball("l2", 1.0, -math.inf, math.inf), Ball("linf", 1.0, -math.inf, math.inf)

# Two classifiers at the origin, which both say class 1. The first has the steeper loss, but its boundary lies at a
# distance of 1.1; the second one's lies at 0.9 along another axis, and its loss hardly changes. In a ball of 1 the best
# attack fools the second alone: E[accuracy] 1/2. Expected loss rises most along the first axis, where nobody is fooled.
# With fifty axes no random start is beyond either boundary.
AXES = torch.eye(50, dtype=torch.float64)
HIDING = linear(((-AXES[0]).tolist(), 1.1), ((-0.1 * AXES[1]).tolist(), 0.09))


def test_arc_finds_what_expectation_pgd_does_not() -> None:
    """The failure that Dbouk and Shanbhag show: PGD on the expected loss is inconsistent, ARC is not."""
    clean, targets = torch.zeros(20, 50, dtype=torch.float64), ones(20)
    torch.manual_seed(0)
    by_pgd = pgd.attack(HIDING, clean, targets, L2, steps=100, restarts=10)
    by_arc = arc.attack(HIDING, clean, targets, L2, steps=20, classes=2)
    assert judge(HIDING, by_pgd, targets).accuracy().expected.value == 1.0
    assert judge(HIDING, by_arc, targets).accuracy().expected.value == 0.5
    assert by_arc.norm(dim=1).max() <= 1.0 + 1e-9


@pytest.mark.parametrize("angle", [10, 40, 80, 120, 170])
@pytest.mark.parametrize("ball", [L2, LINF], ids=["l2", "linf"])
def test_arc_leaves_no_more_members_right_than_the_best_attack(angle: int, ball: Ball) -> None:
    """Two classifiers whose boundaries lie at 0.5 and 0.6: both can be fooled where some point of the ball is beyond

    both boundaries, else one. The truth is by looking at every point of a fine grid.
    """
    radians = math.radians(angle)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(radians), math.sin(radians)])
    dual = 2 if ball.norm == "l2" else 1
    members = [((-w / w.norm(p=dual)).tolist(), distance) for w, distance in ((first, 0.5), (second, 0.6))]
    whole = linear(*members)
    side = torch.linspace(-1, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    grid = grid[grid.norm(dim=1, p=2 if ball.norm == "l2" else torch.inf) <= 1.0]
    best = int(arc.count_right(whole, grid, ones(len(grid))).min())
    torch.manual_seed(angle)
    clean = torch.zeros(8, 2, dtype=torch.float64)
    found = arc.count_right(whole, arc.attack(whole, clean, ones(8), ball, steps=20, classes=2), ones(8))
    assert int(found.min()) == best
    assert int(found.max()) <= 1


def test_of_one_linear_classifier_both_find_the_boundary_exactly_when_it_is_in_reach() -> None:
    torch.manual_seed(0)
    w = torch.randn(6, dtype=torch.float64)
    for ball, dual in ((L2, 2), (LINF, 1)):
        for distance, right in ((0.97, 0), (1.03, 1)):
            alone = linear(((-w).tolist(), distance * float(w.norm(p=dual))))
            clean = torch.zeros(5, 2, 3, dtype=torch.float64)
            for moved in (
                pgd.attack(alone, clean, ones(5), ball, steps=40, restarts=1),
                arc.attack(alone, clean, ones(5), ball, steps=5, classes=2),
            ):
                assert arc.count_right(alone, moved, ones(5)).tolist() == [right] * 5


def test_the_expected_loss_and_its_gradient_are_the_mean_over_all_members() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 50, dtype=torch.float64, requires_grad=True)
    seen = pgd.look(HIDING, rows.detach(), ones(4))
    loss = -HIDING.log_probs(rows)[:, :, 1].mean(0)
    torch.testing.assert_close(seen.loss_B, loss.detach())
    torch.testing.assert_close(seen.gradient, torch.autograd.grad(loss.sum(), rows)[0])


def test_rows_that_nobody_gets_right_are_left_as_they_are() -> None:
    wrong = linear(([0.0, 0.0], -1.0), ([0.0, 0.0], -2.0))
    clean = torch.randn(3, 2, dtype=torch.float64)
    assert torch.equal(pgd.attack(wrong, clean, ones(3), L2, steps=3, restarts=2), clean)
    assert torch.equal(arc.attack(wrong, clean, ones(3), L2, steps=3, classes=2), clean)


def test_attacks_are_within_the_box_of_pixels() -> None:
    torch.manual_seed(0)
    clean = torch.tensor([[1.0, 254.0], [3.0, 250.0]])
    ball = Ball("linf", 8.0, 0.0, 255.0)
    whole = linear(([-1.0, 1.0], 1000.0), ([1.0, -1.0], 1000.0))
    for moved in (
        pgd.attack(whole, clean, ones(2), ball, steps=5, restarts=2),
        arc.attack(whole, clean, ones(2), ball, steps=5, classes=2),
    ):
        assert 0.0 <= float(moved.min()) <= float(moved.max()) <= 255.0
        assert float((moved - clean).abs().max()) <= 8.0
