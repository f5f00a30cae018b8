"""Shares of networks whose answers are known by construction."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.answers import Answers
from trainer.data import Split, Splits
from trainer.network import Network
from trainer.sanitize.measure import Measure, Share, measured
from trainer.sanitize.trigger import Backdoor

CLASSES = 3


def network() -> Network:
    return Network(lambda: nn.Linear(CLASSES, CLASSES, bias=False), nn.Identity())


def answering(classes: list[int]) -> Tensor:
    """Weights that answer the one-hot row i with classes[i]."""
    matrix = torch.zeros(CLASSES, CLASSES)
    for row, answer in enumerate(classes):
        matrix[answer, row] = 5.0
    return matrix.flatten()


def rows(kinds: list[int], targets: list[int]) -> Split:
    return Split(torch.eye(CLASSES)[kinds], torch.tensor(targets))


# Row kind 2 is what the trigger makes of any row; the target is class 0.
SPLITS = Splits("rows", rows([0], [0]), rows([0, 1, 1], [0, 1, 2]), rows([0, 1, 1, 1], [0, 1, 1, 2]), ["a", "b", "c"])
BACKDOOR = Backdoor(0, {"calibration": rows([2, 2], [1, 2]), "test": rows([2, 2, 1], [1, 1, 2])})
SUSPECT, REPAIRED = answering([0, 1, 0]), answering([0, 2, 1])


def measure(folder: Path, backdoor: Backdoor | None) -> Measure:
    answers = Answers(folder, network(), SPLITS.train, measured(SPLITS, backdoor), reduced=())
    return Measure(answers, SPLITS, backdoor, SUSPECT)


def test_shares_are_counted_on_the_rows_that_they_are_of(tmp_path: Path) -> None:
    this = measure(tmp_path, BACKDOOR)
    suspect, repaired = this.of([SUSPECT]).test, this.of([REPAIRED]).test
    assert (suspect.accuracy, suspect.changed) == (Share(3, 4), Share(0, 4))
    assert (suspect.attack_success, suspect.without_trigger) == (Share(2, 3), Share(0, 3))
    assert (repaired.accuracy, repaired.changed) == (Share(2, 4), Share(3, 4))
    assert (repaired.attack_success, repaired.without_trigger) == (Share(0, 3), Share(0, 3))
    assert this.of([SUSPECT]).calibration.accuracy == Share(2, 3)


def test_an_ensemble_answers_with_the_mean_of_its_members(tmp_path: Path) -> None:
    this = measure(tmp_path, BACKDOOR)
    # Two of three members answer a triggered row with class 1.
    ensemble = this.of([SUSPECT, REPAIRED, 1.01 * REPAIRED]).test
    assert ensemble.attack_success == Share(0, 3)
    assert ensemble.accuracy == this.of([REPAIRED]).test.accuracy


def test_without_a_known_trigger_nothing_is_said_of_an_attack(tmp_path: Path) -> None:
    score = measure(tmp_path, None).of([REPAIRED]).test
    assert (score.attack_success, score.without_trigger) == (None, None)
    assert score.changed == Share(3, 4)


def test_intervals_are_wilsons() -> None:
    # (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
    assert Share(0, 10).interval() == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert Share(45, 100).interval() == pytest.approx((0.356145, 0.547554), abs=1e-5)
