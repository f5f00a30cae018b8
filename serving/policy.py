"""Which members answer which rows: a pure function of the request's choice and of the draws it is given."""

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

_SYSTEM = random.SystemRandom()


class Policy(StrEnum):
    MEAN = "mean"  # all members
    MEMBERS = "members"  # a chosen subset
    RANDOM = "random"  # every row its own, drawn afresh
    CURVE = "curve"  # every row a network of its own, at a point of the curve drawn afresh
    CASCADE = "cascade"  # one after the other, until their mean is sure enough


@dataclass(frozen=True)
class Choice:
    policy: Policy
    members: tuple[int, ...] = ()  # of `members`: indices, distinct, in the client's order
    energy: bool = False  # whether energies are wanted: a second pass over all logits


def assign(
    choice: Choice, rows: int, members: int, draw: Callable[[int], int] = secrets.randbelow
) -> NDArray[np.bool_]:
    """[M, B]: whether member m answers row b; none does of `curve`, nor of `cascade`, whose rows find their own.

    draw: an integer below its argument, uniform, from the operating system's random source. Never a function of
    the input: then every small change of it would draw again, and a lucky wrong draw would be permanent.
    """
    mask_MB = np.zeros((members, rows), dtype=np.bool_)
    match choice.policy:
        case Policy.MEAN:
            mask_MB[:] = True
        case Policy.MEMBERS:
            mask_MB[list(choice.members)] = True
        case Policy.RANDOM:
            mask_MB[[draw(members) for _ in range(rows)], range(rows)] = True
    return mask_MB


def draw_points(rows: int, draw: Callable[[], float] = _SYSTEM.random) -> list[float]:
    """A position on the curve for each row, t ~ U(0, 1), from the operating system's random source."""
    return [draw() for _ in range(rows)]
