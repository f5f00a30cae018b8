"""How many rows are answered rightly: by a member that is drawn, by the mean, by every member; with intervals.

All members are counted, so E[accuracy] has no noise of draws; what intervals speak of are the rows alone. They take the
networks and the attack as given: a better attack may exist, and then the true accuracy is lower.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import beta, norm
from torch import Tensor

from trainer.attack.target import Target
from trainer.evaluate import BATCH_ROWS

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """Of the test rows; low and high enclose the share of all such rows, at CONFIDENCE."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    rows: int
    expected: Share  # of policy `random`: E[accuracy] over members drawn uniformly. Wilson
    mean: Share | None  # of policy `mean`. Clopper-Pearson. None where networks cannot be counted: drawn on a curve
    all_members: Share | None  # rows that every member gets right, so that no draw is wrong. Clopper-Pearson


@dataclass(frozen=True)
class Right:
    """Who is right on what."""

    members_MN: Tensor  # bool
    mean_N: Tensor  # bool

    @property
    def count(self) -> Tensor:
        """[N] how many members are right."""
        return self.members_MN.sum(0)

    def accuracy(self) -> Accuracy:
        return _accuracy(self.count, len(self.members_MN), self.mean_N)


def score(log_probs_MNC: Tensor, mean_NC: Tensor, targets: Tensor) -> Accuracy:
    """log_probs_MNC: of the members, or any scores of which the first greatest is the answer; mean_NC likewise."""
    return Right(log_probs_MNC.argmax(-1) == targets, mean_NC.argmax(-1) == targets).accuracy()


@torch.no_grad()
def judge(target: Target, rows: Tensor, targets: Tensor) -> Right:
    """Who is right on these rows [N, ...]; on the CPU."""
    members, means = [], []
    for part, own in zip(rows.split(BATCH_ROWS), targets.split(BATCH_ROWS), strict=True):
        log_probs_MBC = target.log_probs(part).cpu()
        members.append(log_probs_MBC.argmax(-1) == own)
        means.append(target.pooled(log_probs_MBC).argmax(-1) == own)
    return Right(torch.cat(members, 1), torch.cat(means))


def worst(found: Sequence[Right]) -> Accuracy:
    """For each row the attack that leaves the fewest members right; of the mean, any attack that fools it."""
    least_N = torch.stack([right.count for right in found]).amin(0)
    mean_N = torch.stack([right.mean_N for right in found]).all(0)
    return _accuracy(least_N, len(found[0].members_MN), mean_N)


def clopper_pearson(right: int, rows: int) -> Share:
    """Exact: it covers the true share with CONFIDENCE at least, whatever that is (Clopper, Pearson 1934)."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low = float(beta.ppf(tail, right, rows - right + 1)) if right else 0.0
    high = float(beta.ppf(1.0 - tail, right + 1, rows - right)) if right < rows else 1.0
    return Share(right / rows, low, high)


def wilson(value: float, rows: int) -> Share:
    """For a mean of `rows` numbers in [0, 1] (Wilson 1927, who has 0s and 1s).

    Approximate, on the wide side: the variance of such numbers is at most value · (1 − value), which is what it takes.
    """
    z2 = float(norm.ppf((1.0 + CONFIDENCE) / 2.0)) ** 2
    middle = (value + z2 / (2.0 * rows)) / (1.0 + z2 / rows)
    half = (z2 * value * (1.0 - value) / rows + z2**2 / (4.0 * rows**2)) ** 0.5 / (1.0 + z2 / rows)
    return Share(value, max(0.0, middle - half), min(1.0, middle + half))


def _accuracy(count_N: Tensor, members: int, mean_N: Tensor) -> Accuracy:
    rows = len(count_N)
    expected = float(count_N.double().mean()) / members
    return Accuracy(
        rows,
        wilson(expected, rows),
        clopper_pearson(int(mean_N.sum()), rows),
        clopper_pearson(int((count_N == members).sum()), rows),
    )
