"""From the members' logits to the answer: tempered probabilities, their mean, and how far members disagree.

The only arithmetic of the server; float64, so that neither large logits nor many members cost digits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Combined:
    probs_BC: NDArray[np.float64]
    entropy_B: NDArray[np.float64]  # nats, of `probs`
    mutual_information_B: NDArray[np.float64]  # nats, before the pooled temperature
    member_probs_MBC: NDArray[np.float64]  # tempered; 0 where a member did not answer a row


def combine(
    logits_MBC: NDArray[np.floating],
    mask_MB: NDArray[np.bool_],
    temperatures_MB: NDArray[np.float64],
    temperature: float | NDArray[np.float64],
) -> Combined:
    """The answer to each row from the members that ran on it.

    p = softmax(log(mean_m softmax(z_m / T_m)) / T); the pooled T, of all rows or [B], only where two or more members
    were averaged. temperatures_MB: T_m, [M, B] or [M, 1].
    Mutual information = H(mean_m p_m) − mean_m H(p_m), never negative.
    """
    member_probs_MBC, log_probs_MBC = _softmax(np.divide(logits_MBC, temperatures_MB[:, :, None], dtype=np.float64))
    if not mask_MB.all():
        member_probs_MBC *= mask_MB[:, :, None]
    count_B = mask_MB.sum(axis=0)
    mean_BC = member_probs_MBC.sum(axis=0) / count_B[:, None]
    log_mean_BC = _log(mean_BC)
    mean_entropy_B = _entropy(mean_BC, log_mean_BC)
    # Where p underflows to 0, log p is still finite and their product 0.
    member_entropy_MB = _entropy(member_probs_MBC, log_probs_MBC)
    mutual_information_B = np.maximum(mean_entropy_B - member_entropy_MB.sum(axis=0) / count_B, 0.0)

    temperature_B = np.where(count_B > 1, temperature, 1.0)
    if (temperature_B == 1.0).all():
        return Combined(mean_BC, mean_entropy_B, mutual_information_B, member_probs_MBC)
    probs_BC, log_probs_BC = _softmax(log_mean_BC / temperature_B[:, None])
    return Combined(probs_BC, _entropy(probs_BC, log_probs_BC), mutual_information_B, member_probs_MBC)


def member_probs(logits: NDArray[np.floating], temperature: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Tempered probabilities, over the last axis."""
    return _softmax(logits.astype(np.float64) / temperature)[0]


def temper(probs_BC: NDArray[np.float64], temperature: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """softmax(log p / T)"""
    return _softmax(_log(probs_BC) / temperature)[0]


def energy(logits_MBC: NDArray[np.floating], mask_MB: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[B]: the mean over a row's members of −log Σ_c exp z_c, no temperatures; higher for what looks unfamiliar.

    Liu et al. 2020, "Energy-based Out-of-distribution Detection", equation 4 with T = 1, as they recommend.
    """
    logits_MBC = logits_MBC.astype(np.float64)
    greatest_MB = logits_MBC.max(axis=2)
    sums_MB = np.exp(logits_MBC - greatest_MB[:, :, None]).sum(axis=2)
    energy_MB = np.where(mask_MB, -(greatest_MB + np.log(sums_MB)), 0.0)
    return np.asarray(energy_MB.sum(axis=0) / mask_MB.sum(axis=0))


def _softmax(logits: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities and their logarithms, over the last axis."""
    # The largest, not the largest in magnitude: [-100, 10] must not overflow.
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exps = np.exp(shifted)
    sums = exps.sum(axis=-1, keepdims=True)
    return exps / sums, shifted - np.log(sums)


def _log(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(probs, np.finfo(np.float64).tiny))


def _entropy(probs: NDArray[np.float64], log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats, over the last axis."""
    return np.asarray(-np.vecdot(probs, log_probs))
