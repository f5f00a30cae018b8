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


class Tempered:
    """A predictor as it is served: its temperatures are what `member.finish` and `member.assemble` fit.

    calibration_MNC: the members' logits; targets [N].
    """

    def __init__(self, calibration_MNC: Tensor, targets: Tensor) -> None:
        self.temperatures = temperature.fit_all(calibration_MNC, targets)
        self.pooled = temperature.fit_pooled(calibration_MNC, self.temperatures, targets)

    def probs(self, logits_MNC: Tensor) -> Tensor:
        """[N, C] float64: the answers."""
        return temperature.pool(logits_MNC, self.temperatures, self.pooled)

    def unfamiliarity(self, logits_MNC: Tensor) -> dict[str, Tensor]:
        """By name, how unfamiliar a server says that rows look: [N] each. A single member knows no disagreement."""
        found = {"entropy": metrics.entropy(self.probs(logits_MNC)), "energy": metrics.energy(logits_MNC)}
        if len(logits_MNC) > 1:
            member_probs = torch.softmax(logits_MNC.double() / self.temperatures[:, None, None], -1)
            found["mutual information"] = metrics.mutual_information(member_probs)
        return found


def detections(own: dict[str, Tensor], foreign: dict[str, Tensor]) -> dict[str, Detection]:
    """By the name of a score of `Tempered.unfamiliarity`."""
    return {name: metrics.detection(own[name], foreign[name]) for name in own}


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
    detections: dict[str, Detection]  # of rows of another data set, by score; empty if there is none


def score(answered: Answered, splits: Splits, independent: Sequence[float]) -> Score:
    """independent: calibrated log-likelihoods of 1, 2, … independent networks; empty if there are none."""
    test, targets = answered.logits["test"], splits.measured["test"].labels
    members = len(test)
    tempered = Tempered(answered.logits["calibration"], splits.calibration.labels)
    untempered = temperature.pool(test, torch.ones(members))
    probs = tempered.probs(test)
    diversity = metrics.diversity(test.double() / tempered.temperatures[:, None, None], targets)
    log_likelihood = metrics.calibrated_log_likelihood(untempered, targets)
    foreign = answered.logits.get("ood")
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
        detections=(
            {} if foreign is None else detections(tempered.unfamiliarity(test), tempered.unfamiliarity(foreign))
        ),
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
