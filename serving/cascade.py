"""Policy `cascade`: a row is answered once the mean of the members that have run is sure enough (Wang et al. 2022)."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from protos import ensemble_pb2
from serving.combine import member_probs, temper
from serving.networks.engines.lanes import Steps

Run = Callable[[NDArray[np.generic], NDArray[np.bool_]], Steps[NDArray[np.float32]]]


class Cascade:
    """temperatures_M: of the members, in the manifest's order."""

    def __init__(
        self, stored: ensemble_pb2.Cascade, member_ids: Sequence[str], temperatures_M: NDArray[np.float64]
    ) -> None:
        self._stages = stored.stages
        self._order = [member_ids.index(stage.member) for stage in stored.stages]
        self._temperatures_M = temperatures_M

    def start(self, mask_MB: NDArray[np.bool_], rows_B: NDArray[np.bool_]) -> None:
        """Gives its rows their first member, to run with whatever else the batch needs."""
        mask_MB[self._order[0], rows_B] = True

    def go_on(
        self,
        run: Run,
        inputs: NDArray[np.generic],
        logits_MBC: NDArray[np.float32],
        mask_MB: NDArray[np.bool_],
        rows_B: NDArray[np.bool_],
        deadline_B: NDArray[np.float64],
        clock: Callable[[], float] = time.monotonic,
    ) -> Steps[NDArray[np.float64]]:
        """Runs further members on the rows that want them, into `logits_MBC` and `mask_MB`.

        A row is answered with what there is once its deadline, on the clock, has passed. Returns the temperature of
        each row's mean, [B].
        """
        temperature_B = np.ones(len(inputs))
        rows = np.flatnonzero(rows_B)
        sum_RC = np.zeros((len(rows), logits_MBC.shape[2]))
        for k, (member, stage) in enumerate(zip(self._order, self._stages, strict=True)):
            if k > 0:
                only_MR = np.zeros((len(mask_MB), len(rows)), dtype=np.bool_)
                only_MR[member] = True
                logits_MBC[member, rows] = (yield from run(inputs[rows], only_MR))[member]
                mask_MB[member, rows] = True
            with np.errstate(invalid="ignore"):  # of logits that are not finite: their rows stop, and are refused later
                sum_RC += member_probs(logits_MBC[member, rows], float(self._temperatures_M[member]))
                confidence_R = temper(sum_RC / (k + 1), stage.temperature).max(axis=1)
            temperature_B[rows] = stage.temperature
            # Where logits are not finite, no confidence compares.
            wants_more_R = (confidence_R <= stage.threshold) & (deadline_B[rows] > clock())
            rows, sum_RC = rows[wants_more_R], sum_RC[wants_more_R]
            if not len(rows):
                break
        return temperature_B
