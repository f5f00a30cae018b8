"""What a repair is asked for, and what it found: for the report, the picture, JSON and benchmarks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import InvalidConfig
from trainer.sanitize.measure import Scores

METHODS = ("curve", "fine-tuning", "from scratch")  # of equals, a later one is recommended
# Measured: benchmarks/README.md. With a known trigger what is exported is itself measured; without one, nothing tells
# how far from the ends a backdoor lives.
MARGIN, MARGIN_UNKNOWN = 0.2, 0.4


@dataclass(frozen=True)
class Options:
    suspect: str  # FILE or FILE@EPOCH
    second: str = ""  # another suspect, for the curve's other end; empty: the suspect's permuted copy
    trigger: str = ""  # MODULE:FUNCTION or FILE.py:FUNCTION; empty: not known
    target: str = ""  # the class that the trigger should bring
    rates: Sequence[float] = ()  # learning rates, each tried with every method; empty: curve.learning_rate
    keep_away: float | None = None  # in t: nearer to an end no member is exported; None: MARGIN or MARGIN_UNKNOWN
    between: Sequence[float] | None = None  # LOW, HIGH: the members to export, in place of those that are best
    allow_untrusted: bool = False  # members near the ends may be exported
    method: str = ""  # of METHODS: its best is exported, whatever is recommended; empty: what is recommended

    def __post_init__(self) -> None:
        if bool(self.trigger) != bool(self.target):
            raise InvalidConfig("--trigger and --target belong together; expected both, or neither")
        if any(not 0.0 < rate < math.inf for rate in self.rates) or len(set(self.rates)) < len(self.rates):
            raise InvalidConfig(f"--rates is {list(self.rates)}; expected different numbers above 0")
        if not 0.0 < self.margin < 0.5:
            raise InvalidConfig(f"--keep-away is {self.margin:g}; expected a number between 0 and 0.5")
        if self.between is None:
            return
        low, high = self.between
        if not 0.0 <= low < high <= 1.0:
            raise InvalidConfig(f"--between is {low:g} {high:g}; expected LOW < HIGH, from 0 to 1")
        least, most = self.allowed
        if low < least or high > most:
            raise InvalidConfig(
                f"--between is {low:g} {high:g}, and the curve's ends are not trusted: expected t from {least:g} to "
                f"{most:g} (--keep-away), or --allow-untrusted"
            )

    @property
    def margin(self) -> float:
        """How near to an end is too near, in t."""
        if self.keep_away is not None:
            return self.keep_away
        return MARGIN if self.trigger else MARGIN_UNKNOWN

    @property
    def allowed(self) -> tuple[float, float]:
        """Between which t members may be exported."""
        return (0.0, 1.0) if self.allow_untrusted else (self.margin, round(1.0 - self.margin, 9))


@dataclass(frozen=True)
class Point:
    t: float
    scores: Scores


@dataclass(frozen=True)
class Candidate:
    """What may be exported: an ensemble of members of a curve, or a single network."""

    method: str  # of METHODS
    rate: float
    between: tuple[float, float] | None  # t of the first and of the last member; None: no curve
    members: int
    scores: Scores

    @property
    def name(self) -> str:
        place = "" if self.between is None else f" t = {self.between[0]:g} … {self.between[1]:g}"
        return f"{self.method}{place}, rate {self.rate:g}"


@dataclass(frozen=True)
class Results:
    config: dict[str, Any]
    options: Options
    rows: dict[str, int]  # by split; "train" are the clean rows of the repair
    steps: int  # of every method at every rate
    suspect: Scores
    curves: dict[str, list[Point]]  # by rate
    candidates: list[Candidate]
    recommended: Candidate
    exported: Candidate
    rule: str
