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
    log_probs_MBC = _log_softmax(logits_MBC.astype(np.float64) / temperatures_MB[:, :, None])
    member_probs_MBC = np.where(mask_MB[:, :, None], np.exp(log_probs_MBC), 0.0)
    count_B = mask_MB.sum(axis=0)
    mean_BC = member_probs_MBC.sum(axis=0) / count_B[:, None]

    # Where p underflows to 0, log p is still finite and their product 0.
    member_entropy_MB = -(member_probs_MBC * np.where(mask_MB[:, :, None], log_probs_MBC, 0.0)).sum(axis=2)
    mutual_information_B = np.maximum(_entropy(mean_BC) - member_entropy_MB.sum(axis=0) / count_B, 0.0)

    probs_BC = mean_BC
    temperature_B = np.broadcast_to(temperature, count_B.shape)
    if (pooled_B := (count_B > 1) & (temperature_B != 1.0)).any():
        probs_BC = np.where(pooled_B[:, None], temper(mean_BC, temperature_B[:, None]), mean_BC)
    return Combined(probs_BC, _entropy(probs_BC), mutual_information_B, member_probs_MBC)


def member_probs(logits: NDArray[np.floating], temperature: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Tempered probabilities, over the last axis."""
    return np.exp(_log_softmax(logits.astype(np.float64) / temperature))


def temper(probs_BC: NDArray[np.float64], temperature: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """softmax(log p / T)"""
    return np.exp(_log_softmax(_log(probs_BC) / temperature))


def energy(logits_MBC: NDArray[np.floating], mask_MB: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[B]: the mean over a row's members of −log Σ_c exp z_c, no temperatures; higher for what looks unfamiliar.

    Liu et al. 2020, "Energy-based Out-of-distribution Detection", equation 4 with T = 1, as they recommend.
    """
    logits_MBC = logits_MBC.astype(np.float64)
    greatest_MB = logits_MBC.max(axis=2)
    sums_MB = np.exp(logits_MBC - greatest_MB[:, :, None]).sum(axis=2)
    energy_MB = np.where(mask_MB, -(greatest_MB + np.log(sums_MB)), 0.0)
    return np.asarray(energy_MB.sum(axis=0) / mask_MB.sum(axis=0))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # The largest, not the largest in magnitude: [-100, 10] must not overflow.
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _log(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(probs, np.finfo(np.float64).tiny))


def _entropy(probs_BC: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-(probs_BC * _log(probs_BC)).sum(axis=-1))
