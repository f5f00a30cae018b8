"""Everything measured on an ensemble's answers, beside error and NLL: calibration, diversity, unfamiliar rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import evaluate, metrics, temperature
from trainer.data import Splits
from trainer.evaluate import Quality
from trainer.metrics import CalibrationError, Detection, Equivalent


@dataclass(frozen=True)
class Answered:
    """A predictor's members and what they answered: logits [M, N, C] by split."""

    name: str
    training_epochs: int
    logits: dict[str, Tensor]


@dataclass(frozen=True)
class Score:
    """On the test split. Tempered: by each member's temperature and the pooled one, as a server answers."""

    predictor: str
    members: int
    training_epochs: int  # of all the networks and curves that it needed
    untempered: Quality  # every temperature 1
    quality: Quality  # tempered
    calibration: CalibrationError  # tempered
    log_likelihood: float  # calibrated, by test-time cross-validation, of the untempered mean
    equivalent: Equivalent | None  # deep-ensemble equivalent; None without independent networks
    disagreement: list[list[float]]  # fraction of rows with different classes, pair by pair
    mean_disagreement: float
    normalised_disagreement: float  # over the members' mean error
    jensen_shannon: float  # mean over pairs, nats, tempered
    by_entropy: Detection | None  # of rows of another data set; None if there is none
    by_mutual_information: Detection | None


def score(answered: Answered, splits: Splits, independent: Sequence[float]) -> Score:
    """independent: calibrated log-likelihoods of 1, 2, … independent networks; empty if there are none."""
    test, targets = answered.logits["test"], splits.measured["test"].labels
    members = len(test)
    temperatures, pooled = _temperatures(answered.logits["calibration"], splits.calibration.labels)
    untempered = temperature.pool(test, torch.ones(members))
    probs = temperature.pool(test, temperatures, pooled)
    diversity = metrics.diversity(test.double() / temperatures[:, None, None], targets)
    log_likelihood = metrics.calibrated_log_likelihood(untempered, targets)
    detection: list[Detection | None] = [None, None]
    if (foreign := answered.logits.get("ood")) is not None:
        own_MNC, foreign_MNC = (torch.softmax(x.double() / temperatures[:, None, None], -1) for x in (test, foreign))
        foreign_probs = temperature.pool(foreign, temperatures, pooled)
        detection[0] = metrics.detection(metrics.entropy(probs), metrics.entropy(foreign_probs))
        if members > 1:
            detection[1] = metrics.detection(
                metrics.mutual_information(own_MNC), metrics.mutual_information(foreign_MNC)
            )
    return Score(
        predictor=answered.name,
        members=members,
        training_epochs=answered.training_epochs,
        untempered=evaluate.quality(untempered, targets),
        quality=evaluate.quality(probs, targets),
        calibration=metrics.calibration_error(probs, targets),
        log_likelihood=log_likelihood,
        equivalent=metrics.deep_ensemble_equivalent(log_likelihood, independent) if independent else None,
        disagreement=diversity.disagreement.tolist(),
        mean_disagreement=diversity.mean_disagreement,
        normalised_disagreement=diversity.normalised_disagreement,
        jensen_shannon=float(diversity.jensen_shannon.sum()) / max(members * (members - 1), 1),
        by_entropy=detection[0],
        by_mutual_information=detection[1],
    )


def independent_log_likelihoods(logits_MNC: Tensor, targets: Tensor) -> list[float]:
    """Calibrated log-likelihood of ensembles of 1, 2, …, M independent networks.

    Of each size the mean over M choices, k networks in a row around the circle: each network counts equally often.
    """
    members = len(logits_MNC)
    found = []
    for size in range(1, members + 1):
        choices = [[(first + i) % members for i in range(size)] for first in range(members if size < members else 1)]
        values = [
            metrics.calibrated_log_likelihood(temperature.pool(logits_MNC[chosen], torch.ones(size)), targets)
            for chosen in choices
        ]
        found.append(sum(values) / len(values))
    return found


def _temperatures(calibration_MNC: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Each member's, and that of their pooled mean: as `member.finish` and `member.assemble` fit them."""
    temperatures = temperature.fit_all(calibration_MNC, targets)
    return temperatures, temperature.fit_pooled(calibration_MNC, temperatures, targets)
