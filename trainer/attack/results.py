"""What an attack was asked for, and what it found: for the report, its pictures, JSON and the manifest."""

from dataclasses import dataclass, field
from typing import Any

from trainer.attack import oracle
from trainer.attack.scores import Accuracy
from trainer.errors import InvalidConfig

WHITE_BOX = ("PGD", "ARC", "APGD-CE", "APGD-T")
CLEAN, WORST, WHOLE = "none", "worst white-box", "worst, in whole levels"


@dataclass(frozen=True)
class Options:
    """Every budget. Lengths are in units of the raw rows: of images, levels of 255."""

    norm: str = "linf"  # or "l2"
    epsilon: float = 0.0  # 0: what the run was trained against; without that, of images, 8 (L∞) or 128 (L2)
    rows: int = 500  # of the test split, equally spaced
    seed: int = 0  # of random starts and draws
    attacks: tuple[str, ...] = WHITE_BOX
    against: tuple[str, ...] | None = None  # other methods of the run to attack beside; None: ind, or else fge
    pgd_steps: int = 50
    pgd_restarts: int = 5
    arc_steps: int = 20
    arc_classes: int = 10  # of which boundaries are looked at, the likeliest; the authors: 10 of 10, 4 of 100
    apgd_steps: int = 100
    apgd_targets: int = 9  # classes, the likeliest wrong ones
    radius_steps: int = 20  # of PGD at each radius
    transfer_steps: int = 50  # of PGD on a network that an outsider may have
    outsider: str = ""  # folder of another run, whose first network it is; empty: a network of method ind
    queries: tuple[int, ...] = (1000, 5000)  # budgets of a row, for Square; none: no attack that asks
    repeat: tuple[int, ...] = (1, 5, 12, 24)  # how often each point is asked about, of the ensemble by policy random
    answers: tuple[str, ...] = ("full",)  # that are attacked, each by itself: full, rounded:N, labels
    through: str = ""  # HOST:PORT of a live server of the ensemble, to be attacked as well
    token_file: str = ""  # a bearer token for it
    tls_authorities: str = ""  # PEM; encrypted, these say who it is

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise InvalidConfig(f"--norm is '{self.norm}'; expected linf or l2")
        if not 0.0 <= self.epsilon < float("inf"):
            raise InvalidConfig(f"--epsilon is {self.epsilon}; expected more than 0, or 0 for the default")
        if odd := [name for name in self.attacks if name not in WHITE_BOX]:
            raise InvalidConfig(f"--attacks has '{odd[0]}'; expected some of {', '.join(WHITE_BOX)}")
        for name, least in (
            ("rows", 1), ("pgd_steps", 1), ("pgd_restarts", 1), ("arc_steps", 1), ("arc_classes", 2),
            ("apgd_steps", 1), ("apgd_targets", 1), ("radius_steps", 1), ("transfer_steps", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise InvalidConfig(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected {least} or more")
        for name, values in (("queries", self.queries), ("repeat", self.repeat)):
            if values and min(values) < 1:
                raise InvalidConfig(f"--{name} has {min(values)}; expected 1 or more")
        for answers in self.answers:
            oracle.check(answers)


@dataclass(frozen=True)
class Predictor:
    name: str
    members: int
    training_epochs: int | None  # of all the networks and curves that it needed; None where the run does not say


@dataclass(frozen=True)
class Line:
    """One attack on one predictor."""

    attack: str
    kind: str  # "clean", "white-box", "worst", "transfer", "black-box" or "live"
    predictor: str
    accuracy: Accuracy
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # when it was computed, perhaps in an earlier call


@dataclass(frozen=True)
class Radius:
    epsilon: float
    accuracy: Accuracy  # under PGD


@dataclass(frozen=True)
class Along:
    """Mean expected loss at clean + s · shift, for the shift that PGD found and for a random one as long."""

    s: list[float]
    attack: list[float]
    random: list[float]
    rising: float  # share of rows whose loss never falls on the way


@dataclass(frozen=True)
class Check:
    """Of what an attack must show if gradients tell the truth (Carlini et al. 2019; Athalye et al. 2018)."""

    name: str
    passed: bool
    detail: str  # what was found, whether it passed or not


@dataclass
class Found:
    config: dict[str, Any]  # the run's
    method: str
    options: Options  # as they were used, nothing left to defaults
    rows: int
    predictors: list[Predictor]  # the attacked ensemble first
    lines: list[Line] = field(default_factory=list)
    radii: list[Radius] = field(default_factory=list)
    along: Along | None = None
    checks: list[Check] = field(default_factory=list)

    def line(self, attack: str, predictor: str) -> Line | None:
        return next((line for line in self.lines if (line.attack, line.predictor) == (attack, predictor)), None)

    def of_kind(self, kind: str, predictor: str) -> list[Line]:
        return [line for line in self.lines if (line.kind, line.predictor) == (kind, predictor)]
