"""Uncertainty and diversity from stored logits and probabilities; error, NLL, Brier and ECE are in evaluate.py.

Functions of tensors alone: probs [N, C], logits [M, N, C] of M members, targets [N].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from sklearn.metrics import auc, roc_curve
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.special import entr

from trainer import temperature

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class EqualMassBin:
    """The rows whose greatest probability lies in [low, high]."""

    low: float
    high: float
    rows: int
    accuracy: float
    confidence: float  # mean greatest probability


@dataclass(frozen=True)
class CalibrationError:
    squared: float  # unbiased, so it may be a little below 0
    error: float  # its root, 0 where it is negative
    bins: list[EqualMassBin]


def calibration_error(probs: Tensor, targets: Tensor, bins: int = CALIBRATION_BINS) -> CalibrationError:
    """The debiased L2 calibration error of the predicted class, over bins of about equally many rows.

    Σ_b n_b/N [(confidence_b − accuracy_b)² − accuracy_b (1 − accuracy_b) / (n_b − 1)]
    Kumar, Liang, Ma 2019, section 5. The last term is what the noise of n_b targets adds to the square. As in the
    authors' code, equal confidences share a bin, so there may be fewer, and a bin of one row, of which no noise is
    known, adds 0.
    """
    confidence, predicted = probs.double().max(1)
    right = (predicted == targets).double()
    count = min(bins, len(targets))
    last = [len(part) for part in torch.arange(len(targets)).tensor_split(count)]
    greatest = confidence.sort().values[torch.tensor(last).cumsum(0) - 1]
    index = torch.searchsorted(greatest, confidence)
    found, squared = [], 0.0
    for b in index.unique():
        inside = confidence[index == b]
        n, accuracy = len(inside), float(right[index == b].mean())
        found.append(EqualMassBin(float(inside.min()), float(inside.max()), n, accuracy, float(inside.mean())))
        if n > 1:
            noise = accuracy * (1 - accuracy) / (n - 1)
            squared += n / len(targets) * ((found[-1].confidence - accuracy) ** 2 - noise)
    return CalibrationError(squared, max(squared, 0.0) ** 0.5, found)


def calibrated_log_likelihood(probs: Tensor, targets: Tensor, splits: int = 5, seed: int = 0) -> float:
    """Mean log-likelihood, nats a row, at the temperature of other rows: test-time cross-validation.

    The rows are halved at random; each half is scored at the temperature fitted on the other; mean over `splits`
    halvings. Ashukha et al. 2020. Higher is better. Predictors are compared on equal halves: equal seeds.
    """
    logits, generator = temperature.as_logits(probs), torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(splits):
        order = torch.randperm(len(targets), generator=generator)
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for fitted, scored in (halves, halves[::-1]):
            divisor = temperature.fit(logits[fitted], targets[fitted])
            scores.append(-float(cross_entropy(logits[scored] / divisor, targets[scored])))
    return sum(scores) / len(scores)


@dataclass(frozen=True)
class Equivalent:
    """A number of independent networks, or on which side of all that were tried it lies."""

    networks: float
    relation: Literal["<", "=", ">"]  # "<" 1: worse than one network; ">" K: better than all K

    def __str__(self) -> str:
        return f"{self.networks:.1f}" if self.relation == "=" else f"{self.relation} {self.networks:.0f}"


def deep_ensemble_equivalent(log_likelihood: float, independent: Sequence[float]) -> Equivalent:
    """The least size of a deep ensemble with this calibrated log-likelihood, by linear interpolation.

    independent: the calibrated log-likelihood of ensembles of 1, 2, …, K independent networks. Ashukha et al. 2020.
    """
    if log_likelihood < independent[0]:
        return Equivalent(1.0, "<")
    reached = next((k for k, value in enumerate(independent) if value >= log_likelihood), None)
    if reached is None:
        return Equivalent(float(len(independent)), ">")
    if reached == 0:
        return Equivalent(1.0, "=")
    below, above = independent[reached - 1], independent[reached]
    return Equivalent(reached + (log_likelihood - below) / (above - below), "=")


@dataclass(frozen=True)
class Diversity:
    """How far members differ, pair by pair: [M, M] float64, zeros on the diagonal; divergences in nats a row."""

    disagreement: Tensor  # fraction of rows with different predicted classes
    kl: Tensor  # KL(row's member ‖ column's member)
    jensen_shannon: Tensor  # in [0, ln 2]
    mean_disagreement: float  # over pairs; 0 for a single member
    # Over the members' mean error, since networks that are often wrong can differ more often; 0 where nobody errs.
    # Fort, Hu, Lakshminarayanan 2019.
    normalised_disagreement: float


def diversity(logits_MNC: Tensor, targets: Tensor) -> Diversity:
    """Divide the logits by the members' temperatures first to measure what is served."""
    members, rows = logits_MNC.shape[:2]
    predicted = logits_MNC.argmax(-1)
    disagreement = torch.stack([(predicted != row).double().mean(1) for row in predicted])
    # No probability is 0, so no logarithm is −∞.
    log_probs = torch.log_softmax(logits_MNC.double(), dim=-1).clamp(min=math.log(torch.finfo(torch.float64).tiny))
    log_probs_MK = log_probs.flatten(1)
    probs_MK = log_probs_MK.exp()
    # KL(i ‖ j) = Σ p_i log p_i − Σ p_i log p_j: one product of matrices.
    cross = probs_MK @ log_probs_MK.T / rows
    kl = (cross.diagonal()[:, None] - cross).clamp(min=0)
    # JS(i, j) = H((p_i + p_j) / 2) − (H(p_i) + H(p_j)) / 2, of which H(s / 2) = ln 2 − ½ Σ s log s.
    jensen_shannon = torch.zeros(members, members, dtype=torch.float64)
    for i, j in combinations(range(members), 2):
        both = probs_MK[i] + probs_MK[j]
        mixed = math.log(2) - torch.dot(both, both.log()) / (2 * rows)
        jensen_shannon[i, j] = jensen_shannon[j, i] = mixed + (cross[i, i] + cross[j, j]) / 2
    mean = float(disagreement.sum()) / max(members * (members - 1), 1)
    error = float((predicted != targets).double().mean())
    return Diversity(disagreement, kl, jensen_shannon.clamp(min=0), mean, mean / error if error else 0.0)


def entropy(probs: Tensor) -> Tensor:
    """Of each row, in nats: [..., C] → [...]."""
    surprise: Tensor = entr(probs.double())
    return surprise.sum(-1)


def mutual_information(probs_MNC: Tensor) -> Tensor:
    """[N], in nats: the entropy of the members' mean less their mean entropy, as a server answers it."""
    return entropy(probs_MNC.double().mean(0)) - entropy(probs_MNC).mean(0)


def energy(logits_MNC: Tensor) -> Tensor:
    """[N]: the mean over members of −log Σ_c exp z_c, as a server answers it; no temperatures.

    Higher for what looks unfamiliar. Liu et al. 2020, equation 4 with T = 1.
    """
    return -torch.logsumexp(logits_MNC.double(), dim=-1).mean(0)


@dataclass(frozen=True)
class Detection:
    """How well a score tells rows of another distribution from the data's own."""

    auroc: float  # chance that a foreign row scores higher than an own one; ties count half
    fpr95: float  # foreign rows taken for own where 95 % of the own ones are


def detection(own: Tensor, foreign: Tensor) -> Detection:
    """own [N], foreign [K]: a score that is higher for what looks foreign, of the test split and of another data set.

    Any score: `entropy(probs)`, `mutual_information(probs_MNC)`, `energy(logits_MNC)`. The positive class of FPR95
    is the data's own, as in Liang, Li, Srikant 2018.
    """
    is_own = torch.cat([torch.ones(len(own)), torch.zeros(len(foreign))])
    fpr, tpr, _ = roc_curve(is_own.numpy(), -torch.cat([own, foreign]).double().numpy(), drop_intermediate=False)
    return Detection(float(auc(fpr, tpr)), float(fpr[(tpr >= 0.95).argmax()]))


@dataclass(frozen=True)
class RiskCoverage:
    """What a predictor that may abstain gets wrong: of the surest 1, 2, …, N rows, [N] float64."""

    coverage: Tensor  # share of all rows
    risk: Tensor  # share of these that are wrong

    @property
    def area(self) -> float:
        """AURC, the mean risk (Geifman, Uziel, El-Yaniv 2019); where confidence says nothing, the error."""
        return float(self.risk.mean())


def risk_coverage(confidence: Tensor, wrong: Tensor) -> RiskCoverage:
    """confidence [N]: higher is surer; wrong [N], bool. El-Yaniv, Wiener 2010.

    Rows of equal confidence are taken in random order: what is expected over all of them.
    """
    falling, order = confidence.double().sort(descending=True)
    _, group, rows = falling.unique_consecutive(return_inverse=True, return_counts=True)
    errors = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, group, wrong[order].double())
    expected = (errors / rows)[group].cumsum(0)
    surest = torch.arange(1, len(confidence) + 1, dtype=torch.float64)
    return RiskCoverage(surest / len(confidence), expected / surest)
