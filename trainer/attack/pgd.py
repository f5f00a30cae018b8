"""PGD on the expected loss, exactly: every member is asked at every step, so nothing is drawn (Madry et al. 2018).

    maximise 1/M Σ_m −log p_m(y | x + δ)   over the ball

What the literature calls adaptive PGD against a randomised ensemble. Members can hide each other's weakness from it
(Dbouk, Shanbhag 2022): arc.py does not ask about their mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.attack.ball import Ball
from trainer.attack.target import Target


@dataclass(frozen=True)
class Point:
    """Of each row: where it is, what it costs the ensemble."""

    right_B: Tensor  # how many members are right
    loss_B: Tensor  # expected, float64
    gradient: Tensor  # of the loss, [B, ...]


def attack(target: Target, clean: Tensor, targets: Tensor, ball: Ball, steps: int, restarts: int) -> Tensor:
    """Of all points seen, the row itself among them, the one with the fewest members right, then of the greatest loss.

    clean: [B, ...] floats. Each restart begins at a random point of the ball and takes steps of 2.5 ε / steps. A row
    that no member gets right is left alone. Draws from torch's global generator.
    """
    best = clean.clone()
    start = look(target, clean, targets)
    least, most = start.right_B, start.loss_B
    step_size = 2.5 * ball.epsilon / steps
    for _ in range(restarts):
        active = least.nonzero()[:, 0]
        shift = ball.draw(clean)[active]  # for all rows: what a row is dealt does not depend on the others
        for step in range(steps + 1):
            if not len(active):
                break
            here = clean[active] + shift
            seen = look(target, here, targets[active])
            better = (seen.right_B < least[active]) | ((seen.right_B == least[active]) & (seen.loss_B > most[active]))
            moved = active[better]
            best[moved], least[moved], most[moved] = here[better], seen.right_B[better], seen.loss_B[better]
            if step == steps:
                break
            going = seen.right_B > 0
            active, shift = active[going], shift[going]
            uphill = step_size * ball.steepest(seen.gradient[going])
            shift = ball.clip(clean[active], shift + uphill)
    return best


def look(target: Target, rows: Tensor, targets: Tensor) -> Point:
    """The expected loss and its gradient, member by member: in the memory of one."""
    rows = rows.detach().requires_grad_()
    right_B = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    loss_B = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    gradient = torch.zeros_like(rows)
    for member in range(len(target)):
        log_probs_BC = target.member_log_probs(member, rows)
        loss = -log_probs_BC.gather(1, targets[:, None])[:, 0] / len(target)
        gradient += torch.autograd.grad(loss.sum(), rows)[0]
        right_B += log_probs_BC.argmax(1) == targets
        loss_B += loss.detach()
    return Point(right_B, loss_B, gradient)
