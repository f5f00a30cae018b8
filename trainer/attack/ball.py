"""Where an adversary may go: a ball of a norm around each row, cut by the range of pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.adversary import NORMS, PIXELS

# Of the norms in trainer/adversary.py.
ORDERS = {"linf": torch.inf, "l2": 2.0}
NAMES = {"linf": "L∞", "l2": "L2"}  # for people


@dataclass(frozen=True)
class Ball:
    norm: str  # of trainer/adversary.py: NORMS
    epsilon: float  # in units of the raw rows: of pixels, levels of 255
    low: float
    high: float  # both infinite without bounds

    def clip(self, clean: Tensor, shift: Tensor) -> Tensor:
        """The shift [B, ...], made short enough, then such that clean + shift lies within the bounds.

        The clamp makes every coordinate's shift smaller, since the clean row lies within them: it stays in the ball.
        """
        short = NORMS[self.norm].project(shift.flatten(1), self.epsilon).view_as(shift)
        return (clean + short).clamp(self.low, self.high) - clean

    def draw(self, clean: Tensor) -> Tensor:
        """A shift for each row, uniform in the ball, then clamped; from torch's global generator on the CPU."""
        drawn = NORMS[self.norm].draw(torch.empty_like(clean, device="cpu").flatten(1), self.epsilon)
        return self.clip(clean, drawn.view_as(clean).to(clean.device))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The shift of norm 1 along which a function with this gradient gains most; 0 for 0."""
        return NORMS[self.norm].steepest(gradient.flatten(1)).view_as(gradient)


def around(rows: Tensor, norm: str, epsilon: float) -> Ball:
    """The ball for raw rows: those of uint8 are pixels and stay pixels, others have no bounds."""
    low, high = PIXELS if rows.dtype == torch.uint8 else (-torch.inf, torch.inf)
    return Ball(norm, epsilon, low, high)


def floats(rows: Tensor) -> Tensor:
    """Raw rows as an attack moves them."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
