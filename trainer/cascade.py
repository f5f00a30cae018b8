"""A cascade: members run one after the other, and a row is answered once their mean is sure enough.

Wang et al. 2022, "Wisdom of Committees". Members run in the order of greedy selection, the best first; the mean of each
prefix has a temperature of its own, so that one threshold of confidence means the same at every length.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from protos import ensemble_pb2
from trainer import conformal, selection, temperature


@dataclass(frozen=True)
class Cascade:
    order: list[int]  # indices of members
    temperatures: list[float]  # of the mean of the first k + 1; 1 for one
    threshold: float  # of the greatest probability; 1: never sure enough

    @property
    def thresholds(self) -> list[float]:
        """By the number of members that ran; after the last one every row is answered."""
        return [self.threshold] * (len(self.order) - 1) + [0.0]

    def answer(self, logits_MNC: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [N, C] float64, and how many members each row took [N]. temperatures [M], of the members."""
        probs_NC = torch.zeros(logits_MNC.shape[1:], dtype=torch.float64)
        run_N = torch.zeros(len(probs_NC), dtype=torch.int64)
        for k, log_mean_NC in enumerate(_log_means(logits_MNC[self.order], temperatures[self.order])):
            mean_NC = torch.softmax(log_mean_NC / self.temperatures[k], dim=-1)
            finished_N = (run_N == 0) & (mean_NC.amax(1) > self.thresholds[k])
            probs_NC[finished_N], run_N[finished_N] = mean_NC[finished_N], k + 1
        return probs_NC, run_N


def fit(logits_MNC: Tensor, temperatures: Tensor, pooled: float, targets: Tensor, loss: float) -> Cascade:
    """Order, temperatures and threshold from the calibration split. pooled: the temperature of all members' mean."""
    order = selection.greedy(logits_MNC, temperatures, targets).order
    between = islice(_log_means(logits_MNC[order], temperatures[order]), 1, len(order) - 1)
    divisors = [1.0, *(temperature.fit(log_mean_NC, targets) for log_mean_NC in between), pooled]
    made = Cascade(order, divisors, threshold=1.0)
    return dataclasses.replace(made, threshold=threshold(made, logits_MNC, temperatures, targets, loss))


def threshold(cascade: Cascade, logits_MNC: Tensor, temperatures: Tensor, targets: Tensor, loss: float) -> float:
    """The least that keeps the promise of `loss`, whatever the cascade's own is.

    loss: the share of rows, in expectation over exchangeable ones, that the mean of all members gets right and the
    cascade wrong; no less than what accuracy falls by. Each row has a confidence such that no threshold from it on
    loses the row; the threshold is the conformal quantile of these. Choosing one by the rows that it loses itself would
    be choosing the luckiest one, whose luck other rows do not have. With fewer than 1/loss − 1 rows nothing can be
    promised: the threshold is 1.
    """
    confidence, predicted = [], []
    for divisor, log_mean_NC in zip(
        cascade.temperatures, _log_means(logits_MNC[cascade.order], temperatures[cascade.order]), strict=True
    ):
        greatest = torch.softmax(log_mean_NC / divisor, dim=-1).max(1)
        confidence.append(greatest.values)
        predicted.append(greatest.indices)

    # A prefix answers a row only at thresholds from the greatest confidence before it up to its own.
    lasting_N, before_N = torch.zeros_like(confidence[0]), torch.zeros_like(confidence[0])
    for mine_N, class_N in zip(confidence, predicted, strict=True):
        lost_N = (predicted[-1] == targets) & (class_N != targets) & (mine_N > before_N)
        lasting_N = torch.where(lost_N, mine_N, lasting_N)
        before_N = torch.maximum(before_N, mine_N)
    return min(conformal.quantile(lasting_N[:, None], 1.0 - loss), 1.0)


def to_proto(cascade: Cascade, member_ids: list[str], loss: float, members_run: float) -> ensemble_pb2.Cascade:
    return ensemble_pb2.Cascade(
        stages=[
            ensemble_pb2.CascadeStage(member=member_ids[index], temperature=divisor, threshold=threshold)
            for index, divisor, threshold in zip(cascade.order, cascade.temperatures, cascade.thresholds, strict=True)
        ],
        accuracy_loss=loss,
        members_run=members_run,
    )


def _log_means(logits_MNC: Tensor, temperatures: Tensor) -> Iterator[Tensor]:
    """Logarithms of the mean tempered probabilities of the first 1, 2, … members, [N, C] float64, finite."""
    least = math.log(torch.finfo(torch.float64).tiny)
    log_sum_NC = torch.tensor(-math.inf, dtype=torch.float64)
    for k, (logits_NC, divisor) in enumerate(zip(logits_MNC, temperatures, strict=True), start=1):
        log_sum_NC = torch.logaddexp(log_sum_NC, torch.log_softmax(logits_NC.double() / divisor, dim=-1))
        yield (log_sum_NC - math.log(k)).clamp(min=least)
