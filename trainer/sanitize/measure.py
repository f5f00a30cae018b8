"""How a network, or an ensemble of several, fares on held-out rows: clean ones, and ones with the trigger."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from trainer import temperature
from trainer.answers import Answers
from trainer.data import Split, Splits
from trainer.sanitize.trigger import SPLITS, Backdoor


@dataclass(frozen=True)
class Share:
    """So many of so many rows."""

    count: int
    of: int

    @property
    def value(self) -> float:
        return self.count / self.of

    def interval(self) -> tuple[float, float]:
        """In which the share of all such rows lies, with 95 % confidence: Wilson 1927."""
        found = binomtest(self.count, self.of).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Score:
    accuracy: Share  # clean rows that are answered rightly
    changed: Share  # clean rows that are answered with another class than by the suspect
    attack_success: Share | None  # triggered rows of other classes, answered with the target; None: no known trigger
    without_trigger: Share | None  # the same rows without it: what any network gets wrong


@dataclass(frozen=True)
class Scores:
    calibration: Score  # what is chosen by
    test: Score  # what is reported


class Measure:
    """suspect: its weights [P]. Every network is measured with BatchNorm recalibrated on the clean rows."""

    def __init__(self, answers: Answers, splits: Splits, backdoor: Backdoor | None, suspect: Tensor) -> None:
        self._answers, self._splits, self._backdoor = answers, splits, backdoor
        self._suspect = self._classes([suspect])

    def of(self, networks: Sequence[Tensor]) -> Scores:
        """Of one network [P], or of the ensemble of several, with the temperatures that it would be served with."""
        classes = self._classes(networks)
        calibration, test = (self._score(name, classes) for name in SPLITS)
        return Scores(calibration, test)

    def _score(self, name: str, classes: dict[str, Tensor]) -> Score:
        found, targets = classes[name], self._splits.measured[name].targets
        accuracy, changed = _share(found == targets), _share(found != self._suspect[name])
        if self._backdoor is None:
            return Score(accuracy, changed, None, None)
        target = self._backdoor.target
        triggered, clean = classes[triggered_name(name)], found[targets != target]
        return Score(accuracy, changed, _share(triggered == target), _share(clean == target))

    def _classes(self, networks: Sequence[Tensor]) -> dict[str, Tensor]:
        """By split, what each row is taken for."""
        names = list(measured(self._splits, self._backdoor))
        given = [self._answers.of(weights, names) for weights in networks]
        logits_MNC = {name: torch.stack([answers[name] for answers in given]) for name in names}
        targets = self._splits.calibration.targets
        temperatures = temperature.fit_all(logits_MNC["calibration"], targets)
        pooled = temperature.fit_pooled(logits_MNC["calibration"], temperatures, targets)
        return {name: temperature.pool(logits_MNC[name], temperatures, pooled).argmax(1) for name in names}


def measured(splits: Splits, backdoor: Backdoor | None) -> dict[str, Split]:
    """The rows that every network is asked about."""
    clean = {name: splits.measured[name] for name in SPLITS}
    triggered = {} if backdoor is None else {triggered_name(name): rows for name, rows in backdoor.rows.items()}
    return clean | triggered


def triggered_name(split: str) -> str:
    return f"{split}-triggered"


def _share(rows: Tensor) -> Share:
    """Of a mask [N]."""
    return Share(int(rows.sum()), len(rows))
