"""What was found under shift: for pictures, report, JSON and benchmarks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.conformal import LEVELS
from trainer.errors import InvalidConfig
from trainer.evaluate import Quality
from trainer.metrics import Detection
from trainer.shift.corruptions import SEVERITIES

COVERAGES = tuple(percent / 100 for percent in range(1, 101))  # at which risk is kept


@dataclass(frozen=True)
class Options:
    ood: Sequence[str] = ()  # data sources: rows of other distributions
    rows: int = 2000  # of test rows and of each other data set, at most; 0: all
    level: float = 0.9  # of prediction sets; the server's default

    def __post_init__(self) -> None:
        if self.rows != 0 and self.rows < 2:
            raise InvalidConfig(f"--rows is {self.rows}; expected 2 or more, or 0 for all")
        if self.level not in LEVELS:
            raise InvalidConfig(
                f"--level is {self.level}; expected one of {', '.join(f'{level:g}' for level in LEVELS)}"
            )
        if len(set(self.ood)) < len(self.ood):
            raise InvalidConfig(f"--ood names a source twice: {' '.join(self.ood)}")


@dataclass(frozen=True)
class Measured:
    """A predictor on labelled rows, with temperatures and thresholds as a server has them."""

    quality: Quality
    calibration_error: float  # debiased
    log_likelihood: float  # calibrated, by test-time cross-validation on these rows, of the untempered mean
    coverage: float  # share of rows whose prediction set holds the true class
    set_size: float  # classes in a set, mean
    aurc: float  # area under the risk-coverage curve, by confidence
    detections: dict[str, Detection]  # of these rows among the clean ones, by score; empty for the clean ones


@dataclass
class UnderShift:
    """A predictor on all rows."""

    predictor: str
    members: int
    training_epochs: int  # of all the networks and curves that it needed
    threshold: float  # of its prediction sets
    clean: Measured
    foreign: dict[str, dict[str, Detection]]  # by source and score
    corrupted: dict[str, list[Measured]] = field(default_factory=dict)  # by kind, one a severity
    # Share of the surest rows that is wrong, at COVERAGES: of "clean" rows, and of all "corrupted" ones together.
    risk: dict[str, list[float]] = field(default_factory=dict)

    def by_severity(self, metric: Callable[[Measured], float]) -> list[float]:
        """Of the clean rows, then the mean over kinds at severities 1 to 5."""
        found = [metric(self.clean)]
        if self.corrupted:
            found += [
                sum(metric(measured[i]) for measured in self.corrupted.values()) / len(self.corrupted)
                for i in range(SEVERITIES)
            ]
        return found

    def corrupted_mean(self, metric: Callable[[Measured], float]) -> float:
        """Over kinds and severities."""
        values = self.by_severity(metric)[1:]
        return sum(values) / len(values)


@dataclass
class Shifted:
    """All that was measured."""

    config: dict[str, Any]  # the run's
    options: Options
    rows: dict[str, int]  # by split and source
    kinds: dict[str, tuple[float, ...]]  # strengths by severity
    predictors: list[UnderShift] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # what could not be measured, and why


@dataclass(frozen=True)
class Metric:
    title: str
    of: Callable[[Measured], float]
    digits: int


# In the order of tables and pictures.
METRICS = {
    "error": Metric("error, %", lambda measured: 100 * measured.quality.error, 2),
    "nll": Metric("NLL, nats", lambda measured: measured.quality.nll, 3),
    "brier": Metric("Brier", lambda measured: measured.quality.brier, 3),
    "calibration": Metric("debiased calibration error", lambda measured: measured.calibration_error, 3),
    "likelihood": Metric("calibrated log-likelihood", lambda measured: measured.log_likelihood, 3),
    "coverage": Metric("covered by sets, %", lambda measured: 100 * measured.coverage, 1),
    "size": Metric("classes in a set", lambda measured: measured.set_size, 2),
    "aurc": Metric("AURC, %", lambda measured: 100 * measured.aurc, 2),
}
