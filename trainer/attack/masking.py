"""What shows whether gradients tell the truth: accuracy over radii, and the loss along the direction that was found.

Athalye, Carlini, Wagner: Obfuscated Gradients Give a False Sense of Security, 2018; Carlini et al. 2019, section 5.
"""

import dataclasses
import math

import torch
from torch import Tensor

from trainer.adversary import PIXELS
from trainer.attack import scores, white_box
from trainer.attack.attacking import Attacking, Victim
from trainer.attack.results import Along, Radius
from trainer.evaluate import BATCH_ROWS
from trainer.seeding import seed_stage

WAY = (0.0, 0.25, 0.5, 0.75, 1.0)
DOUBLINGS = 10  # of float rows, at most: they have no radius at which every row can be every other


def radii(this: Attacking, victim: Victim) -> list[Radius]:
    """Accuracy under a short PGD at 0, ¼ ε, ½ ε, ε, 2 ε, …, up to where nothing is right any more.

    Each is attacked by itself: from a smaller radius's examples accuracy could not rise, and nothing would be shown.
    """
    epsilon, limit = this.options.epsilon / 4, _greatest(this)
    short = dataclasses.replace(this.options, pgd_steps=this.options.radius_steps, pgd_restarts=1)
    pgd = white_box.make("PGD", short)
    found = [Radius(0.0, scores.judge(victim.target, this.clean, this.targets).accuracy())]
    while True:
        epsilon = min(epsilon, limit)
        ball = dataclasses.replace(this.ball, epsilon=epsilon)
        right = this.right(this.examples(pgd, victim, ball))
        found.append(Radius(epsilon, right.accuracy()))
        nobody = not right.members_MN.any() and not right.mean_N.any()
        if (nobody and epsilon > this.options.epsilon) or epsilon == limit:
            return found
        epsilon *= 2


def _greatest(this: Attacking) -> float:
    """The radius at which a row of pixels can become any other."""
    if math.isinf(this.ball.high):
        return this.options.epsilon * 2.0**DOUBLINGS
    span = PIXELS[1] - PIXELS[0]
    return span if this.ball.norm == "linf" else span * math.sqrt(this.clean[0].numel())


def along(this: Attacking, victim: Victim, moved: Tensor) -> Along:
    """From the clean rows to what PGD made of them, `moved` [N, ...], and as far in a random direction."""
    seed_stage(this.options.seed, "attack", "along")
    shift = moved.to(this.clean) - this.clean
    drawn = this.ball.draw(this.clean)
    lengths = [scale.flatten(1).norm(dim=1) for scale in (shift, drawn)]
    random = drawn * (lengths[0] / lengths[1].clamp(min=1e-12)).view(-1, *(1,) * (drawn.dim() - 1))
    attack = torch.stack([_losses(this, victim, shift, s) for s in WAY])
    return Along(
        list(WAY),
        attack.mean(1).tolist(),
        [float(_losses(this, victim, random, s).mean()) for s in WAY],
        float((attack.diff(dim=0) >= 0).all(0).double().mean()),
    )


@torch.no_grad()
def _losses(this: Attacking, victim: Victim, shift: Tensor, s: float) -> Tensor:
    """[N] mean over members of −log p of the true class, within the range of pixels; on the CPU."""
    rows = (this.clean + s * shift).clamp(this.ball.low, this.ball.high)
    parts = zip(rows.split(BATCH_ROWS), this.targets.split(BATCH_ROWS), strict=True)
    return torch.cat(
        [-victim.target.log_probs(part).cpu()[:, torch.arange(len(own)), own].mean(0) for part, own in parts]
    )
