"""Square attack: random search over squares of pixels, which sees answers and nothing else.

Andriushchenko, Croce, Flammarion, Hein: Square Attack, ECCV 2020; algorithms 1 to 3, with the schedule of section 4
stretched to the budget as in AutoAttack. Against an oracle that draws, a point is judged by its one noisy answer, and
the search never stops early: a lucky wrong draw is not success. Every row moves by draws of its own, so rows are
independent.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainer.attack.ball import Ball
from trainer.attack.oracle import Oracle, OutOfQueries, sendable
from trainer.errors import InvalidConfig

FIRST_SHARE = 0.8  # of the pixels, in the first squares
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # after so many of 10,000 steps the share halves
TILES = 5  # along a side, in the first point of L2


@dataclass(frozen=True)
class Snapshot:
    queries: int  # budget of a row; of the trajectory, whose schedule is that of the largest budget
    asked: int  # of all rows together: fewer than budget · N if fooled rows stop or the oracle runs out
    rows: Tensor  # [N, ...] floats: the best point of each row so far, by its own answer


@dataclass(frozen=True)
class Search:
    """Both give shifts [N, C, H, W] of norm epsilon."""

    first: Callable[[Tensor, float], Tensor]  # of the shape of this one
    change: Callable[[Tensor, float, float], Tensor]  # of these, each in a square with that share of its pixels


def attack(
    oracle: Oracle,
    clean: Tensor,
    targets: Tensor,
    ball: Ball,
    queries: Sequence[int],
    *,
    stop_when_fooled: bool = False,
) -> list[Snapshot]:
    """A snapshot at each budget of queries a row, ascending, from one trajectory.

    clean: raw images [N, C, H, W], floats; what is asked about is what a client can send. targets: [N].
    stop_when_fooled: for a deterministic oracle alone; a row is asked about until it is fooled.

    Labels only tell on which side of the boundary a point lies: the search walks at random until it crosses.
    Draws from torch's global generator. Raises InvalidConfig for rows that are no images.
    """
    if clean.dim() != 4:
        raise InvalidConfig(f"rows are {list(clean.shape[1:])}; Square attacks images [channels, height, width]")
    search, budgets = SEARCHES[ball.norm], sorted(set(queries))
    best, least = clean.clone(), torch.full((len(clean),), torch.inf, dtype=torch.float64)
    asked, snapshots = 0, []
    try:
        for step in range(budgets[-1]):
            active = (least > 0).nonzero()[:, 0] if stop_when_fooled else torch.arange(len(clean))
            if len(active):
                here = clean[active]
                shift = best[active] - here
                if step == 0:
                    shift = search.first(shift, ball.epsilon)
                else:
                    shift = search.change(shift, ball.epsilon, _share(step - 1, budgets[-1]))
                candidate = here + sendable(ball, here, shift)
                found = margin(oracle(candidate), targets[active])
                asked += len(active)
                # Equally good ones too: where all answers are alike, as labels are, it must not stand still.
                better = found <= least[active]
                best[active[better]], least[active[better]] = candidate[better], found[better]
            if step + 1 in budgets:
                snapshots.append(Snapshot(step + 1, asked, best.clone()))
    except OutOfQueries:
        snapshots += [Snapshot(budget, asked, best) for budget in budgets[len(snapshots) :]]
    return snapshots


def margin(answers_NC: Tensor, targets: Tensor) -> Tensor:
    """[N] log p of the true class less that of the likeliest other one, float64: at most 0 where the row is fooled.

    Of full precision this is the margin of the logits. Answers of 0, as rounded ones have, count as 1e-38.
    """
    logs = answers_NC.double().clamp(min=torch.finfo(torch.float32).tiny).log()
    own = logs.gather(1, targets[:, None])[:, 0]
    return own - logs.scatter(1, targets[:, None], -torch.inf).amax(1)


def _share(step: int, steps: int) -> float:
    """Of the pixels, in the square of this step: halved less and less often."""
    position = int(step / steps * 10000)
    return float(FIRST_SHARE / 2 ** sum(position > halving for halving in HALVINGS))


def _signs(*shape: int) -> Tensor:
    return torch.randint(2, shape) * 2.0 - 1.0


def _squares(rows: int, side: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """One at random in each row: its top and left edges [B], and the pixels inside it, bool [B, 1, H, W]."""
    top, left = torch.randint(height - side + 1, (rows,)), torch.randint(width - side + 1, (rows,))
    return top, left, (_inside(top, side, height)[:, :, None] & _inside(left, side, width)[:, None, :])[:, None]


def _inside(start: Tensor, side: int, size: int) -> Tensor:
    place = torch.arange(size) - start[:, None]
    return (place >= 0) & (place < side)


def _side(share: float, height: int, width: int) -> int:
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _first_linf(shift: Tensor, epsilon: float) -> Tensor:
    """Vertical stripes, each of one sign in each channel."""
    rows, channels, _, width = shift.shape
    return (epsilon * _signs(rows, channels, 1, width)).expand_as(shift)


def _change_linf(shift: Tensor, epsilon: float, share: float) -> Tensor:
    """A square of ±epsilon: what the paper's ±2 · epsilon is once it is clipped to the ball."""
    rows, channels, height, width = shift.shape
    *_, square = _squares(rows, _side(share, height, width), height, width)
    return torch.where(square, epsilon * _signs(rows, channels, 1, 1), shift)


def _first_l2(shift: Tensor, epsilon: float) -> Tensor:
    """A grid of tiles, each the pattern of a square with a sign in each channel."""
    rows, channels, height, width = shift.shape
    side = max(min(height, width) // TILES, 1)
    down, across = height // side, width // side
    upright = torch.randint(2, (rows, 1, down, across)).bool()
    tile = _pattern(side)
    board = torch.where(_enlarged(upright, side), tile.repeat(down, across), tile.T.repeat(down, across))
    board = board * _enlarged(_signs(rows, channels, down, across), side)
    above, before = (height - down * side) // 2, (width - across * side) // 2
    whole = pad(board, (before, width - across * side - before, above, height - down * side - above))
    return epsilon * _unit(whole, (1, 2, 3))


def _change_l2(shift: Tensor, epsilon: float, share: float) -> Tensor:
    """Algorithm 3: a square takes over the norm of another one, and what is left of epsilon, in a new direction."""
    rows, channels, height, width = shift.shape
    side = _side(share, height, width)
    side = min(max(side + 1 - side % 2, 3), height, width)
    top, left, square = _squares(rows, side, height, width)
    *_, other = _squares(rows, side, height, width)
    unused = (epsilon**2 - shift.square().sum((1, 2, 3), keepdim=True)).clamp(min=0)
    norm = ((shift * (square | other)).square().sum((2, 3), keepdim=True) + unused / channels).sqrt()
    direction = _placed(top, left, side, height, width) * _signs(rows, channels, 1, 1)
    direction = direction + _unit(shift * square, (2, 3))
    moved = torch.where(square, norm * _unit(direction, (2, 3)), shift.masked_fill(other, 0.0))
    return epsilon * _unit(moved, (1, 2, 3))


def _placed(top: Tensor, left: Tensor, side: int, height: int, width: int) -> Tensor:
    """[B, 1, H, W]: the pattern in each row's square, upright or lying, and 0 elsewhere."""
    pattern = pad(_pattern(side), (0, 1, 0, 1))  # of index `side`: 0
    down = torch.where(_inside(top, side, height), torch.arange(height) - top[:, None], side)[:, :, None]
    across = torch.where(_inside(left, side, width), torch.arange(width) - left[:, None], side)[:, None, :]
    upright = torch.randint(2, (len(top), 1, 1)).bool()
    return torch.where(upright, pattern[down, across], pattern[across, down])[:, None]


@functools.cache
def _pattern(side: int) -> Tensor:
    """[side, side] of norm 1: a bump above its negative; equation 1 of the paper."""
    return _unit(torch.cat([_bump(side // 2, side), -_bump(side - side // 2, side)]), (0, 1))


def _bump(height: int, width: int) -> Tensor:
    """Rectangles around the middle, of weights 1, 1/4, 1/9, …, on top of each other; of norm 1."""
    rows, columns = (torch.arange(size) - size // 2 for size in (height, width))
    layer = torch.maximum(rows.abs()[:, None], columns.abs())  # the innermost that a pixel is in
    weights = 1.0 / torch.arange(1, max(height, width) // 2 + 2).square()
    return _unit(weights.flip(0).cumsum(0).flip(0)[layer], (0, 1))


def _enlarged(tiles: Tensor, side: int) -> Tensor:
    return tiles.repeat_interleave(side, 2).repeat_interleave(side, 3)


def _unit(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Of norm 1 over those axes, and 0 for 0."""
    return values / values.square().sum(axes, keepdim=True).sqrt().clamp(min=1e-12)


SEARCHES = {"linf": Search(_first_linf, _change_linf), "l2": Search(_first_l2, _change_l2)}
