"""Policy `curve` in torch: networks at any t, made as the server makes them (docs/uncertainty.md, serving/networks)."""

import bisect
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trainer.attack.oracle import Oracle, dealt
from trainer.errors import InvalidConfig
from trainer.finished_run import FinishedRun
from trainer.network import Statistics

NETWORKS = 8  # that a call makes


@dataclass(frozen=True)
class Point:
    weights: Tensor  # [P]
    statistics: Statistics
    temperature: float


class CurvePoints:
    """Weights are the curve's own; statistics and temperature lie linearly between those of the members beside t.

    Raises InvalidConfig for a run without a curve, or whose members do not reach from one end to the other.
    """

    def __init__(self, run: FinishedRun) -> None:
        if "curve" not in run.ensembles:
            raise InvalidConfig(f"'{run.folder}' has no curve; it has {', '.join(run.ensembles)}")
        members = sorted(run.members("curve"), key=lambda member: member[0].curve_point.t)
        self._ts = [entry.curve_point.t for entry, *_ in members]
        if (self._ts[0], self._ts[-1]) != (0.0, 1.0) or any(a == b for a, b in pairwise(self._ts)):
            raise InvalidConfig(
                f"the curve's members in '{run.folder}' are at t = {self._ts}; expected different ones, from 0 to 1"
            )
        self._curve = run.curve()
        self._statistics = [statistics for *_, statistics in members]
        self._temperatures = [entry.temperature for entry, *_ in members]

    def at(self, t: float) -> Point:
        right = min(max(bisect.bisect_left(self._ts, t), 1), len(self._ts) - 1)
        left = right - 1
        share = (t - self._ts[left]) / (self._ts[right] - self._ts[left])
        before, after = self._statistics[left], self._statistics[right]
        statistics = {name: (1 - share) * before[name] + share * after[name] for name in before}
        temperature = (1 - share) * self._temperatures[left] + share * self._temperatures[right]
        return Point(self._curve.point(t), statistics, temperature)


def random_point(run: FinishedRun) -> Oracle:
    """Every row by a network at a point drawn for it, t ~ U(0, 1).

    A call draws a few points and deals its rows to them, since making a network costs more than asking it: what a row
    sees, call after call, are independent uniform draws; rows of one call may see the same network.
    """
    points, network = CurvePoints(run), run.network

    @torch.no_grad()
    def answer(rows: Tensor) -> Tensor:
        drawn = [points.at(t) for t in torch.rand(NETWORKS).tolist()]

        def run_point(index: int, part: Tensor) -> Tensor:
            point = drawn[index]
            weights = point.weights.to(network.placement.device)
            with network.evaluating():
                logits = network.logits(weights, point.statistics, part)
            return torch.softmax(logits / point.temperature, 1)

        return dealt(rows, NETWORKS, run_point)

    return answer
