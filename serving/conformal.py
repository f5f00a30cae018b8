"""Prediction sets: every class that is likely enough for the set to hold the true one at a given level.

LAC: Sadinle, Lei, Wasserman 2019. The thresholds were fitted by the trainer, for each policy.
"""

from bisect import bisect_left
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protos import ensemble_pb2
from serving.errors import InvalidRequest
from serving.policy import Policy

DEFAULT_LEVEL = 0.9


class Conformal:
    def __init__(self, stored: Iterable[ensemble_pb2.Conformal]) -> None:
        self._by_policy = {
            entry.policy: [(threshold.level, threshold.threshold) for threshold in entry.thresholds] for entry in stored
        }

    def threshold(self, policy: Policy, level: float) -> float:
        """Of the least level of the manifest that is not below `level`. Raises InvalidRequest if there is none."""
        if policy not in self._by_policy:
            known = " and ".join(f"'{name}'" for name in self._by_policy) or "none"
            raise InvalidRequest(
                f"output 'prediction_set' was asked for with policy '{policy}'; "
                f"the manifest has conformal thresholds for {known}"
            )
        thresholds = self._by_policy[policy]
        index = bisect_left(thresholds, level - 1e-12, key=lambda entry: entry[0])
        if index == len(thresholds):
            raise InvalidRequest(f"parameter 'level' is {level}; the manifest goes up to {thresholds[-1][0]}")
        return thresholds[index][1]


def prediction_set(probs_BC: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """[B, C]: the classes with 1 − p of at most the threshold, and the likeliest one, so that no set is empty."""
    chosen_BC = 1.0 - probs_BC <= threshold
    chosen_BC[np.arange(len(probs_BC)), probs_BC.argmax(axis=1)] = True
    return chosen_BC
