"""ARC: attacks members one after the other, and keeps a step if no more members are right than before.

Dbouk, Shanbhag: Adversarial Vulnerability of Randomized Ensembles, ICML 2022, algorithm 2, read beside their code
(github.com/hsndbk4/ARC, attack.py). Around the row as it is now, a local step u of norm η is found: for each member in
turn, with ζ the distance to the nearest boundary of its linearisation and g the direction to it, u becomes
η (u + β g) / ‖u + β g‖, with the β that takes this member across and moves least from what fools the others.

As in their code: the boundary is that of the class which the member says, right or not; β = η where it is out of reach;
a step is kept if the number of right members does not rise. As in their `lite` variant, only the likeliest classes'
boundaries are looked at: `classes` of them, the member's own answer among them. Other than there:

- Two starts: the clean row with η = ε, the form that is proved to find what linear classifiers hide from PGD; a random
  one with the η of their commands. From this alone the failure in tests/trainer/attack/test_toys.py is not found.
- Members are equally likely, so their order is that of serving.
- A row that no member gets right is left alone, and the best point seen is returned.
"""

import torch
from torch import Tensor

from trainer.attack.ball import ORDERS, Ball
from trainer.attack.target import Target

STEP = {"linf": 1.0, "l2": 0.25}  # η over ε from a random start, as in the authors' commands
BEYOND = 0.05  # ρ over ε: past a boundary, not onto it
DUAL = {"linf": 1.0, "l2": 2.0}


def attack(target: Target, clean: Tensor, targets: Tensor, ball: Ball, steps: int, classes: int) -> Tensor:
    """The point found with the fewest members right. clean: [B, ...] floats. Draws from torch's global generator."""
    best, least = clean.clone(), count_right(target, clean, targets)
    for start, step_size in (
        (torch.zeros_like(clean), ball.epsilon),
        (ball.draw(clean), STEP[ball.norm] * ball.epsilon),
    ):
        shift, active = start, torch.arange(len(clean), device=clean.device)
        right = count_right(target, clean + shift, targets)
        for step in range(steps + 1):
            fewer = right < least[active]
            best[active[fewer]], least[active[fewer]] = (clean[active] + shift)[fewer], right[fewer]
            going = least[active] > 0
            active, shift, right = active[going], shift[going], right[going]
            if step == steps or not len(active):
                break
            own, rows = targets[active], clean[active]
            local = _local_step(target, rows, shift, own, right, ball, step_size, classes)
            moved = ball.clip(rows, shift + local)
            after = count_right(target, rows + moved, own)
            kept = after <= right
            shift[kept], right[kept] = moved[kept], after[kept]
    return best


def _local_step(
    target: Target,
    clean: Tensor,
    shift: Tensor,
    targets: Tensor,
    right: Tensor,
    ball: Ball,
    step_size: float,
    classes: int,
) -> Tensor:
    """u [B, ...]: of norm η, or 0 where no step is any good."""
    local, least = torch.zeros_like(clean), right.clone()
    for member in range(len(target)):
        slope, distance = _nearest_boundary(target, member, clean + shift + local, ball.norm, classes)
        reach = torch.full_like(distance, step_size)
        if member:
            # −w/‖w‖_q · u: how far the local step has gone towards this boundary already.
            gone = (slope * local.flatten(1)).sum(1) / _length(slope, DUAL[ball.norm])
            needed = step_size / (step_size - distance) * (distance - gone).abs() + BEYOND * ball.epsilon
            reach = torch.where(distance < step_size, needed, reach)
        proposed = local.flatten(1) + reach[:, None] * ball.steepest(slope)
        proposed = step_size * proposed / _length(proposed, ORDERS[ball.norm])[:, None]  # 0 for 0
        moved = clean + ball.clip(clean, shift + proposed.view_as(clean))
        after = count_right(target, moved, targets)
        kept = after <= least
        local[kept], least[kept] = proposed.view_as(clean)[kept], after[kept]
    return local


def _nearest_boundary(target: Target, member: int, rows: Tensor, norm: str, classes: int) -> tuple[Tensor, Tensor]:
    """Of the member's linearisation: −w [B, D], along which the lead of its answer falls, and the distance [B].

    The lead over class j is z_m − z_j, its gradient w; the boundary is |z_m − z_j| / ‖w‖_q away, q dual to the norm.
    """
    rows = rows.detach().requires_grad_()
    log_probs_BC = target.member_log_probs(member, rows)
    ranked = log_probs_BC.topk(min(classes, log_probs_BC.shape[1]), dim=1).values
    slopes, distances = [], []
    for rival in range(1, ranked.shape[1]):
        lead = ranked[:, 0] - ranked[:, rival]
        (gradient,) = torch.autograd.grad(lead.sum(), rows, retain_graph=rival < ranked.shape[1] - 1)
        slopes.append(-gradient.flatten(1))
        distances.append(lead.detach().to(rows) / _length(slopes[-1], DUAL[norm]))
    distance, nearest = torch.stack(distances).min(0)
    slope = torch.stack(slopes)[nearest, torch.arange(len(rows), device=rows.device)]
    return slope, distance


def _length(vectors: Tensor, order: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vectors, order, dim=1)
    return length.clamp(min=torch.finfo(vectors.dtype).tiny)


@torch.no_grad()
def count_right(target: Target, rows: Tensor, targets: Tensor) -> Tensor:
    """[B]: how many members are right."""
    right = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for member in range(len(target)):
        right += target.member_log_probs(member, rows).argmax(1) == targets
    return right
