"""A predictor as it is served, on rows of every kind: temperatures and threshold come from its calibration rows."""

import torch
from torch import Tensor

from trainer import conformal, evaluate, metrics, temperature
from trainer.metrics import Detection
from trainer.scores import Tempered, detections
from trainer.shift.results import COVERAGES, Measured


class Contender:
    """calibration_MNC: its members' logits; targets [N]. level: of prediction sets."""

    def __init__(self, calibration_MNC: Tensor, targets: Tensor, level: float) -> None:
        self.tempered = Tempered(calibration_MNC, targets)
        scores = conformal.scores(self.tempered.probs(calibration_MNC), targets)
        self.threshold = min(conformal.quantile(scores[:, None], level), 1.0)
        self._own: dict[str, Tensor] = {}
        self._rated: list[tuple[Tensor, Tensor]] = []  # confidence [N], wrong [N]

    def clean(self, logits_MNC: Tensor, targets: Tensor) -> tuple[Measured, list[float]]:
        """On the rows that others are told from; and the risk at COVERAGES."""
        self._own = self.tempered.unfamiliarity(logits_MNC)
        measured = self._measure(logits_MNC, targets, {})
        return measured, _risk([self._rated.pop()])

    def corrupted(self, logits_MNC: Tensor, targets: Tensor) -> Measured:
        return self._measure(logits_MNC, targets, self.foreign(logits_MNC))

    def foreign(self, logits_MNC: Tensor) -> dict[str, Detection]:
        """How well these rows are told from the clean ones."""
        return detections(self._own, self.tempered.unfamiliarity(logits_MNC))

    def corrupted_risk(self) -> list[float]:
        """At COVERAGES, of all corrupted rows together."""
        return _risk(self._rated)

    def _measure(self, logits_MNC: Tensor, targets: Tensor, found: dict[str, Detection]) -> Measured:
        probs = self.tempered.probs(logits_MNC)
        confidence, predicted = probs.max(1)
        wrong = predicted != targets
        self._rated.append((confidence, wrong))
        sets = conformal.prediction_sets(probs, self.threshold)
        untempered = temperature.pool(logits_MNC, torch.ones(len(logits_MNC)))
        return Measured(
            quality=evaluate.quality(probs, targets),
            calibration_error=metrics.calibration_error(probs, targets).error,
            log_likelihood=metrics.calibrated_log_likelihood(untempered, targets),
            coverage=float(sets.gather(1, targets[:, None]).double().mean()),
            set_size=float(sets.sum(1).double().mean()),
            aurc=metrics.risk_coverage(confidence, wrong).area,
            detections=found,
        )


def _risk(rated: list[tuple[Tensor, Tensor]]) -> list[float]:
    confidence, wrong = (torch.cat(parts) for parts in zip(*rated, strict=True))
    risk = metrics.risk_coverage(confidence, wrong).risk
    return [float(risk[max(1, round(share * len(risk))) - 1]) for share in COVERAGES]
