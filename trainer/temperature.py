"""Calibrates: fits the temperature that divides logits, by NLL on the calibration split, never on test data.

Guo et al. 2017. A pooled temperature is the same fit with log of the mean probabilities as the logits.
"""

import functools
import math

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainer.errors import TrainingDiverged

# Where every calibration row is right the NLL falls without end as T → 0; nobody should be made that sure.
LEAST, GREATEST = 0.1, 10.0
POOLED_ROWS = 1000


def fit(logits: Tensor, targets: Tensor) -> float:
    """The temperature in [0.1, 10] of least NLL. logits [N, C], targets [N]. Raises TrainingDiverged.

    The NLL of βz is convex in β = 1/T, so it is least where its slope, the mean over rows of Σ_c p_c (z_c − z_y) with
    p = softmax(βz), is zero; or at a bound, where the slope has one sign.
    """
    logits = logits.double()
    if not math.isfinite(cross_entropy(logits, targets)):
        raise TrainingDiverged("the network's logits are not finite; no temperature can be fitted")
    # Less the target's, so that nothing large cancels; and 0 · −∞, a class that is ruled out, would be NaN.
    above_NC = (logits - logits.gather(1, targets[:, None])).clamp(min=torch.finfo(torch.float64).min)

    @functools.cache  # brentq asks for both ends again
    def slope(log_temperature: float) -> float:
        probs_NC = torch.softmax(above_NC / math.exp(log_temperature), dim=1)
        return float(torch.dot(probs_NC.flatten(), above_NC.flatten())) / len(targets)

    low, high = math.log(LEAST), math.log(GREATEST)
    if slope(low) <= 0:
        return LEAST
    if slope(high) >= 0:
        return GREATEST
    return math.exp(brentq(slope, low, high, xtol=1e-9))


def fit_all(logits_MNC: Tensor, targets: Tensor) -> Tensor:
    """Each member's own temperature, [M] float64; in the memory of one member's float64 logits."""
    return torch.tensor([fit(logits_NC, targets) for logits_NC in logits_MNC], dtype=torch.float64)


def fit_pooled(logits_MNC: Tensor, temperatures: Tensor, targets: Tensor) -> float:
    """That of the mean of the members' tempered probabilities; 1 for a single member. temperatures [M]."""
    if len(logits_MNC) == 1:
        return 1.0
    return fit(as_logits(pool(logits_MNC, temperatures)), targets)


def as_logits(probs: Tensor) -> Tensor:
    """Finite float64 logits whose softmax the probabilities are: their logarithm, of 1e-308 where one is zero."""
    return probs.double().clamp(min=torch.finfo(torch.float64).tiny).log()


def temper(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature), [N, C] float64."""
    return torch.softmax(logits.double() / temperature, dim=-1)


def pool(logits_MBC: Tensor, temperatures: Tensor, temperature: float = 1.0) -> Tensor:
    """What the server answers: the mean of the members' tempered probabilities, itself tempered. [B, C] float64.

    p = softmax(log(1/M Σ_m softmax(z_m / T_m)) / T). `temperatures` [M]; `temperature` T acts on two or more members.
    """
    # A few rows at a time: in float64, with what is between, all at once would be six times the members' own logits.
    parts = logits_MBC.split(POOLED_ROWS, dim=1)
    return torch.cat([_pool(part_MBC, temperatures, temperature) for part_MBC in parts])


def _pool(logits_MBC: Tensor, temperatures: Tensor, temperature: float) -> Tensor:
    log_probs_MBC = torch.log_softmax(logits_MBC.double() / temperatures.double().view(-1, 1, 1), dim=-1)
    members = len(log_probs_MBC)
    log_mean_BC = torch.logsumexp(log_probs_MBC, dim=0) - math.log(members)
    return torch.softmax(log_mean_BC / (temperature if members > 1 else 1.0), dim=-1)
