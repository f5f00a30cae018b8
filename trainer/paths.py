"""Loss and error along a path through weight space: Garipov et al. 2018, appendix A.3 and Figures 2 and 4."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from trainer import evaluate, temperature
from trainer.answers import Answers
from trainer.curve import Curve
from trainer.data import Splits
from trainer.progress import Progress


@dataclass(frozen=True)
class Summary:
    """Of a metric along a path, as in the paper's Table 2."""

    minimum: float
    integral: float  # mean over the uniform distribution on the path ("Int")
    maximum: float


def summarise(values: Sequence[float], pieces: Sequence[float]) -> Summary:
    """values at the points of a grid, pieces: the lengths between neighbours.

    ∫ metric dφ / ∫ dφ (eq. 1), by the trapezoidal rule with respect to arc length.
    """
    trapezoids = [(a + b) / 2 * piece for (a, b), piece in zip(pairwise(values), pieces, strict=True)]
    return Summary(min(values), math.fsum(trapezoids) / math.fsum(pieces), max(values))


@dataclass(frozen=True)
class Path:
    """One entry a point. Errors are fractions, losses nats; BatchNorm is recalibrated at every point."""

    name: str
    t: list[float]
    walked: list[float]  # arc length from t = 0
    train_loss: list[float]  # cross-entropy and the L2 term, ½ · weight_decay · ‖φ(t)‖²
    train_nll: list[float]
    train_error: list[float]
    test_nll: list[float]
    test_nll_tempered: list[float]  # after the temperature that calibration rows give this point
    test_error: list[float]
    pair_error: list[float]  # test error of the ensemble of φ(0) and φ(t), probabilities averaged

    @property
    def length(self) -> float:
        return self.walked[-1]

    def summary(self, metric: str) -> Summary:
        pieces = [b - a for a, b in pairwise(self.walked)]
        return summarise(getattr(self, metric), pieces)


@dataclass(frozen=True)
class Walk:
    """Two-network ensembles along a path whose points are of no use alone (paper, Figure 4: random segment)."""

    name: str
    walked: list[float]
    pair_error: list[float]


def grid(points: int) -> list[float]:
    """t, equally spaced in [0, 1], both ends included."""
    return [i / (points - 1) for i in range(points)]


def measure(
    name: str,
    point: Callable[[float], Tensor],
    ts: Sequence[float],
    pieces: Sequence[float],
    answers: Answers,
    splits: Splits,
    weight_decay: float,
    seen: Callable[[int], None] = lambda done: None,
) -> Path:
    """point: φ, from t to weights [P]. pieces: the lengths between neighbours of ts. seen: told the points done."""
    found = Path(name, list(ts), [0.0, *accumulate(pieces)], [], [], [], [], [], [], [])
    first = None
    for done, t in enumerate(ts, 1):
        weights = point(t)
        given = answers.of(weights, ("train", "calibration", "test"))
        train_nll, train_error = given["train"].tolist()
        found.train_nll.append(train_nll)
        found.train_error.append(train_error)
        found.train_loss.append(train_nll + regulariser(weights, weight_decay))
        probs = torch.softmax(given["test"].double(), dim=1)
        first = probs if first is None else first
        quality = evaluate.quality(probs, splits.measured["test"].labels)
        found.test_nll.append(quality.nll)
        found.test_error.append(quality.error)
        fitted = temperature.fit(given["calibration"], splits.calibration.labels)
        tempered = evaluate.quality(temperature.temper(given["test"], fitted), splits.measured["test"].labels)
        found.test_nll_tempered.append(tempered.nll)
        found.pair_error.append(_error(first + probs, splits.measured["test"].labels))
        seen(done)
    return found


def along(
    name: str, curve: Curve, points: int, answers: Answers, splits: Splits, weight_decay: float, progress: Progress
) -> Path:
    """Of so many points of a curve, equally spaced in t."""
    ts = grid(points)
    with progress.counting(name, points) as seen:
        return measure(name, curve.point, ts, curve.chords(ts), answers, splits, weight_decay, seen)


def regulariser(weights: Tensor, weight_decay: float) -> float:
    """½ · weight_decay · ‖w‖², what weight decay adds to the loss."""
    return 0.5 * weight_decay * float(torch.linalg.vector_norm(weights.double()) ** 2)


def random_segment(start: Tensor, length: float, seed: int) -> Curve:
    """A straight line from `start` [P] of that length, in a direction drawn uniformly at random."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
    end = start.double() + direction * (length / direction.norm())
    return Curve("polygonal-chain", [start, end.to(start.dtype)])


def walk(
    name: str, curve: Curve, points: int, answers: Answers, splits: Splits,
    seen: Callable[[int], None] = lambda done: None,
) -> Walk:  # fmt: skip
    ts = grid(points)
    first, errors = None, []
    for done, t in enumerate(ts, 1):
        probs = torch.softmax(answers.of(curve.point(t), ("test",))["test"].double(), dim=1)
        first = probs if first is None else first
        errors.append(_error(first + probs, splits.measured["test"].labels))
        seen(done)
    return Walk(name, [0.0, *accumulate(curve.chords(ts))], errors)


def _error(probs: Tensor, targets: Tensor) -> float:
    return float((probs.argmax(1) != targets).double().mean())
