"""APGD-CE and APGD-T on the members' mean, by pyautoattack. Needs the extra [attack].

Croce, Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Attacks, ICML 2020.

Its rows lie in [0, 1], its losses are of logits: rows are scaled, and log of the mean's probabilities are such logits.
"""

import math
from types import ModuleType

from torch import Tensor

from trainer.attack.ball import Ball
from trainer.attack.target import Target
from trainer.errors import UserError

NORMS = {"linf": "Linf", "l2": "L2"}
DLR_CLASSES = 4  # the targeted loss looks at the four greatest logits: with fewer classes there is no APGD-T


def attack(target: Target, clean: Tensor, targets: Tensor, ball: Ball, steps: int, rivals: int, seed: int) -> Tensor:
    """clean [B, ...] with the rows replaced that it fools, as AutoAttack runs it: one restart, EOT of 1.

    rivals: 0: the loss is cross-entropy; else APGD-T, aimed at so many of the likeliest wrong classes, one by one.
    """
    library = require()
    low, span = _scale(clean, ball)

    def logits(rows: Tensor) -> Tensor:
        return target.mean_log_probs(low + span * rows)

    inputs = (clean - low) / span
    options = {
        "n_iter": steps,
        "norm": NORMS[ball.norm],
        "eps": ball.epsilon / span,
        "seed": seed,
        "device": clean.device,
    }
    if rivals == 0:
        search = library.APGDAttack(logits, loss="ce", **options)
        moved: Tensor = search.perturb(inputs, targets)
    else:
        search = library.APGDAttack_targeted(logits, n_target_classes=rivals, **options)
        moved = search.perturb(inputs, targets)
    # Scaling back rounds: by a millionth of a level, which is not the adversary's to have.
    return clean + ball.clip(clean, low + span * moved - clean)


def _scale(clean: Tensor, ball: Ball) -> tuple[float, float]:
    """What 0 stands for, and how much 1 is: the range of pixels; without one, a range that holds every row's ball."""
    if math.isfinite(ball.low) and math.isfinite(ball.high):
        return ball.low, ball.high - ball.low
    low, high = float(clean.min()) - ball.epsilon, float(clean.max()) + ball.epsilon
    return low, high - low


def require() -> ModuleType:
    """The library. Raises UserError without it."""
    try:
        from pyautoattack import autopgd_base
    except ImportError:
        raise UserError("APGD needs the extra [attack]: pip install 'thalweg[attack]'") from None
    return autopgd_base  # type: ignore[no-any-return]
