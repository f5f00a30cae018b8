"""A check fails where it should: figures that masked gradients, or a weak attack, would give."""

import math

import torch

from tests.trainer.attack.two_classes import linear, ones
from trainer.attack import checks, scores
from trainer.attack.results import CLEAN, WORST, Along, Found, Line, Options, Predictor, Radius
from trainer.attack.scores import Accuracy, Right


def accuracy(right: int, rows: int = 100) -> Accuracy:
    row = (torch.arange(rows) < right)[None]
    return Right(row, row[0]).accuracy()


def found(*, radii: list[int], along: list[float], lines: list[Line] | None = None) -> Found:
    result = Found({}, "fge", Options(), 100, [Predictor("fge", 2, None)], lines or [])
    result.radii = [Radius(float(epsilon), accuracy(right)) for epsilon, right in enumerate(radii)]
    result.along = Along([0.0, 0.5, 1.0], along, [0.1, 0.1, 0.2], 1.0)
    return result


def failed(result: Found) -> set[str]:
    return {check.name for check in checks.of(result) if not check.passed}


def test_figures_of_attacks_that_work_pass() -> None:
    assert failed(found(radii=[90, 40, 41, 0], along=[0.1, 2.0, 3.0])) == set()  # one row in a hundred is slack


def test_an_accuracy_that_rises_or_stays_fails() -> None:
    assert failed(found(radii=[90, 40, 45, 0], along=[0.1, 2.0, 3.0])) == {
        "E[accuracy] falls with the radius", "accuracy of the mean falls with the radius",
    }  # fmt: skip
    assert failed(found(radii=[90, 40, 20, 10], along=[0.1, 2.0, 3.0])) == {
        "E[accuracy] reaches 0", "accuracy of the mean reaches 0",
    }  # fmt: skip


def test_a_loss_that_does_not_rise_fails() -> None:
    falling, rising, beside = (
        "the loss rises along the direction of attack", "the loss rises along the direction of attack",
        "it rises more than along a random direction",
    )  # fmt: skip
    assert failed(found(radii=[90, 0], along=[0.1, 2.0, 1.0])) == {falling}
    assert failed(found(radii=[90, 0], along=[0.1, 0.1, 0.1])) == {beside}
    assert failed(found(radii=[90, 0], along=[0.3, 0.2, 0.1])) == {rising, beside}


def test_who_has_no_weights_does_no_better_than_who_has() -> None:
    def lines(worst: int, transfer: int, square: int) -> list[Line]:
        kinds = {
            CLEAN: ("clean", 90),
            WORST: ("worst", worst),
            "outsider": ("transfer", transfer),
            "Square": ("black-box", square),
        }
        return [Line(name, kind, "fge", accuracy(right)) for name, (kind, right) in kinds.items()]

    good = {"radii": [90, 0], "along": [0.1, 2.0, 3.0]}
    assert failed(found(**good, lines=lines(30, 70, 60))) == set()  # type: ignore[arg-type]
    assert len(failed(found(**good, lines=lines(30, 70, 20)))) == 2  # type: ignore[arg-type]
    assert len(failed(found(**good, lines=lines(30, 95, 60)))) == 2  # type: ignore[arg-type]


def test_a_step_function_in_front_of_the_network_is_found_out() -> None:
    """The classic that hides gradients: rows are rounded to whole hundreds, so the loss is flat."""
    import dataclasses

    from trainer.attack import pgd
    from trainer.attack.ball import Ball

    open_ = linear(([-1.0], 1.0))
    masked = dataclasses.replace(
        open_, networks=[lambda rows: open_.networks[0]((rows / 100).round() * 100 + 0 * rows)]
    )
    ball = Ball("linf", 3.0, -math.inf, math.inf)
    clean = torch.zeros(10, 1, dtype=torch.float64)
    for whole, right in ((open_, 0.0), (masked, 1.0)):
        torch.manual_seed(0)
        moved = pgd.attack(whole, clean, ones(10), ball, steps=10, restarts=1)
        assert scores.judge(whole, moved, ones(10)).accuracy().expected.value == right
