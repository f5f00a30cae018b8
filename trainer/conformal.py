"""Conformal prediction: thresholds so that sets of likely classes hold the true one in a given share of rows.

The score of a row is 1 − p of its true class, a set is every class whose score would be at most the threshold (LAC:
Sadinle, Lei, Wasserman 2019). Fitted on the calibration split; what is promised holds for rows exchangeable with it.
"""

import math

import torch
from torch import Tensor

from protos import ensemble_pb2
from trainer import temperature

# Others are served by the next higher one. Small in a manifest, dense where people ask.
LEVELS = (*(percent / 100 for percent in (50, 55, 60, 65, 70, 75, 80, 85, *range(90, 100))), 0.995, 0.999)


def scores(probs: Tensor, targets: Tensor) -> Tensor:
    """1 − p of the true class: probs [..., N, C], targets [N] → [..., N]."""
    index = targets.expand(probs.shape[:-1])[..., None]
    return 1.0 - probs.double().gather(-1, index)[..., 0]


def quantile(scores_NK: Tensor, level: float, chances_K: Tensor | None = None) -> float:
    """What a new row's score exceeds with a probability of 1 − `level` at most; infinite if N rows cannot say.

    With one score a row, the ⌈(N + 1) · level⌉-th smallest. With K, of which each answer draws one at random, what is
    bounded is the chance that a row's draw exceeds it (conformal risk control, Angelopoulos et al. 2024): K draws on a
    row are not K rows.
    chances_K: of each to be drawn, 1 in all; equal ones if left out.
    """
    rows, draws = scores_NK.shape
    if chances_K is None:
        chances_K = torch.full((draws,), 1.0 / draws, dtype=torch.float64)
    # A little more than rounding can lose: (99 + 1) · (1 − 0.95) is 5, not 4.99….
    may_exceed = (rows + 1) * (1.0 - level) - 1.0 + 1e-6
    if may_exceed < 0:
        return math.inf
    falling, order = scores_NK.flatten().sort(descending=True)
    exceeding = chances_K.expand(rows, draws).flatten()[order].cumsum(0)  # the score itself counted in
    return float(falling[torch.searchsorted(exceeding, may_exceed, right=True)])


def prediction_sets(probs: Tensor, threshold: float) -> Tensor:
    """[N, C] bool, as a server answers them: the classes with 1 − p of at most the threshold, and the likeliest one."""
    chosen = 1.0 - probs.double() <= threshold
    return chosen.scatter(1, probs.argmax(1, keepdim=True), True)


def to_proto(policy: str, scores_NK: Tensor, chances_K: Tensor | None = None) -> ensemble_pb2.Conformal:
    """The thresholds of a policy at LEVELS; 1, every class, where there are too few rows for one."""
    return ensemble_pb2.Conformal(
        policy=policy,
        rows=len(scores_NK),
        thresholds=[
            ensemble_pb2.ConformalThreshold(level=level, threshold=min(quantile(scores_NK, level, chances_K), 1.0))
            for level in LEVELS
        ],
    )


def random_scores(logits_MNC: Tensor, temperatures: Tensor, targets: Tensor) -> Tensor:
    """[N, M]: of policy random, which answers a row by any one of the members. temperatures [M]."""
    return torch.stack(
        [
            scores(temperature.temper(logits, float(divisor)), targets)
            for logits, divisor in zip(logits_MNC, temperatures, strict=True)
        ],
        dim=1,
    )


def curve_chances(ts: list[float]) -> Tensor:
    """[M]: of policy curve, which draws t ~ U(0, 1), to draw a network nearest to each member. ts: [M], from 0 to 1.

    The trapezoidal rule over t: networks between two members are taken to be as good as these on average.
    """
    t_M = torch.tensor(ts, dtype=torch.float64)
    halves = t_M.diff() / 2
    zero = halves.new_zeros(1)
    return torch.cat([halves, zero]) + torch.cat([zero, halves])
