"""Members: weights with an origin, and what the stages after training add to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protos.ensemble_pb2 import CurvePoint, Endpoint, FgeSnapshot, GaussianSample, SseSnapshot, WeightAverage
from trainer import batchnorm, evaluate, selection, swag, temperature
from trainer.curve import KINDS, Curve
from trainer.data import Splits
from trainer.errors import TrainingDiverged
from trainer.evaluate import Quality
from trainer.network import Network, Statistics
from trainer.snapshots import Snapshot

Origin = Endpoint | SseSnapshot | FgeSnapshot | WeightAverage | GaussianSample | CurvePoint


@dataclass(frozen=True)
class Member:
    """One predictor: recalibrated, calibrated, and its answers on every split."""

    id: str
    origin: Origin
    terms: dict[str, float]  # coefficient by the id of a weight set
    statistics: Statistics
    # [N, C] by measured split, [N·L, C] for next tokens; everything below and in the report is computed from these.
    logits: dict[str, Tensor]
    temperature: float


@dataclass(frozen=True)
class Ensemble:
    name: str
    weight_sets: dict[str, Tensor]  # [P] by id
    members: list[Member]
    temperature: float  # of the pooled mean

    @property
    def temperatures(self) -> Tensor:
        return stacked_temperatures(self.members)

    def logits(self, split: str) -> Tensor:
        """[M, N, C]"""
        return stacked_logits(self.members, split)

    def probs(self, split: str, tempered: bool = True) -> Tensor:
        """[N, C] float64: what a server answers to the split's rows; without temperatures if not `tempered`."""
        logits_MBC = self.logits(split)
        if not tempered:
            return temperature.pool(logits_MBC, torch.ones(len(self.members)))
        return temperature.pool(logits_MBC, self.temperatures, self.temperature)

    def quality(self, splits: Splits, split: str, tempered: bool = True) -> Quality:
        return evaluate.quality(self.probs(split, tempered), splits.measured[split].labels)


@dataclass(frozen=True)
class End:
    """A network trained alone."""

    weights: Tensor  # [P]
    epochs: int  # that went into it


def finish(
    network: Network, splits: Splits, identifier: str, origin: Origin, terms: dict[str, float], weights: Tensor
) -> Member:
    """Recalibrates BatchNorm on the training split, answers what is measured, fits the temperature on calibration."""
    statistics = batchnorm.recalibrate(network, weights, splits.train)
    logits = {name: evaluate.logits(network, weights, statistics, split) for name, split in splits.measured.items()}
    try:
        fitted = temperature.fit(logits["calibration"], splits.calibration.labels)
    except TrainingDiverged as error:
        raise TrainingDiverged(f"{identifier}: {error}") from error
    return Member(identifier, origin, terms, statistics, logits, fitted)


def select(members: Sequence[Member], splits: Splits, count: int) -> list[Member]:
    """The `count` best on calibration, in the order in which they were chosen; 0: all, as they are."""
    if not count:
        return list(members)
    logits_MNC = stacked_logits(members, "calibration")
    chosen = selection.greedy(logits_MNC, stacked_temperatures(members), splits.calibration.labels, count)
    return [members[i] for i in chosen.order]


def assemble(name: str, weight_sets: dict[str, Tensor], members: Sequence[Member], splits: Splits) -> Ensemble:
    """The ensemble, with the temperature of its pooled mean fitted on calibration; 1 for a single member."""
    logits_MNC = stacked_logits(members, "calibration")
    pooled = temperature.fit_pooled(logits_MNC, stacked_temperatures(members), splits.calibration.labels)
    return Ensemble(name, weight_sets, list(members), pooled)


def stacked_logits(members: Sequence[Member], split: str) -> Tensor:
    """[M, N, C]"""
    return torch.stack([member.logits[split] for member in members])


def stacked_temperatures(members: Sequence[Member]) -> Tensor:
    """[M] float64"""
    return torch.tensor([member.temperature for member in members], dtype=torch.float64)


def endpoints(network: Network, splits: Splits, name: str, ends: Sequence[End]) -> Ensemble:
    """Networks trained alone, as an ensemble of that name."""
    weight_sets = {f"endpoint-{run}": end.weights for run, end in enumerate(ends)}
    members = [
        finish(network, splits, identifier, Endpoint(run=run, epoch=end.epochs), {identifier: 1.0}, end.weights)
        for run, (identifier, end) in enumerate(zip(weight_sets, ends, strict=True))
    ]
    return assemble(name, weight_sets, members, splits)


def snapshot(network: Network, splits: Splits, method: str, run: int, taken: Snapshot) -> Member:
    """A snapshot as a member, of the weight set of its own name. method: "fge" or "sse"."""
    identifier = f"{method}-{run}-{taken.cycle}"
    kind = FgeSnapshot if method == "fge" else SseSnapshot
    origin = kind(run=run, cycle=taken.cycle, epoch=taken.epoch)
    return finish(network, splits, identifier, origin, {identifier: 1.0}, taken.weights)


def averages(network: Network, splits: Splits, runs: Sequence[Sequence[Snapshot]]) -> Ensemble:
    """SWA: one network a run, the mean of its snapshots."""
    weight_sets = {f"swa-{run}": swag.mean([snapshot.weights for snapshot in taken]) for run, taken in enumerate(runs)}
    members = [
        finish(network, splits, identifier, WeightAverage(run=run, snapshots=len(runs[run])), {identifier: 1.0}, vector)
        for run, (identifier, vector) in enumerate(weight_sets.items())
    ]
    return assemble("swa", weight_sets, members, splits)


def gaussian(network: Network, splits: Splits, runs: Sequence[Sequence[Snapshot]], samples: int) -> Ensemble:
    """SWAG: so many networks a run, drawn from the Gaussian over its snapshots."""
    weight_sets = {}
    members = []
    for run, draw in [(run, draw) for run in range(len(runs)) for draw in range(samples)]:
        identifier = f"swag-{run}-{draw}"
        weight_sets[identifier] = swag.draw([snapshot.weights for snapshot in runs[run]])
        origin = GaussianSample(run=run, draw=draw)
        members.append(finish(network, splits, identifier, origin, {identifier: 1.0}, weight_sets[identifier]))
    return assemble("swag", weight_sets, members, splits)


def curve_points(network: Network, splits: Splits, curve: Curve, points: int) -> list[Member]:
    """Networks equally spaced in t on the curve, both ends included."""
    names = control_point_names(curve)
    members = []
    for i in range(points):
        t = i / (points - 1)
        origin = CurvePoint(curve=KINDS[curve.kind], bends=curve.bends, t=t)
        terms = dict(zip(names, curve.coefficients(t), strict=True))
        members.append(finish(network, splits, f"curve-{i}", origin, terms, curve.point(t)))
    return members


def curve(curve: Curve, members: Sequence[Member], splits: Splits) -> Ensemble:
    weight_sets = dict(zip(control_point_names(curve), curve.control_points, strict=True))
    return assemble("curve", weight_sets, members, splits)


def control_point_names(curve: Curve) -> list[str]:
    return ["endpoint-0", *(f"bend-{k}" for k in range(1, curve.bends + 1)), "endpoint-1"]
