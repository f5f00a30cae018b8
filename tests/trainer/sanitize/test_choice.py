"""The rules of recommendation on numbers made by hand."""

from collections.abc import Sequence

import pytest

from trainer.sanitize import choice
from trainer.sanitize.measure import Score, Scores, Share
from trainer.sanitize.results import Candidate

TS = [i / 10 for i in range(11)]
MIDDLE = (0.2, 0.8)


def score(accuracy: int, attack: int | None = None) -> Score:
    """Of 100 rows each."""
    share = None if attack is None else Share(attack, 100)
    return Score(Share(accuracy, 100), Share(0, 100), share, share)


def along(accuracies: Sequence[int], attacks: Sequence[int] | None = None) -> list[Score]:
    return [score(accuracy, attacks and attacks[i]) for i, accuracy in enumerate(accuracies)]


def candidate(method: str, rate: float, calibration: Score, test: Score | None = None) -> Candidate:
    return Candidate(method, rate, None, 1, Scores(calibration, test or calibration))


def test_worth_is_accuracy_less_attack_success() -> None:
    assert choice.worth(score(90, 15)) == pytest.approx(0.75)
    assert choice.worth(score(90)) == pytest.approx(0.9)


def test_the_stretch_is_the_best_point_with_neighbours_as_good_but_for_two_points() -> None:
    accuracies = [95, 95, 90, 90, 92, 93, 92, 91, 90, 95, 95]
    attacks = [99, 60, 40, 5, 4, 3, 4, 3, 30, 60, 99]
    # Worth in points at t = 0.2 … 0.8: 50 85 88 90 88 88 60.
    assert choice.stretch(TS, along(accuracies, attacks), MIDDLE) == (0.4, 0.7)


def test_a_lone_best_point_takes_one_neighbour_on_each_side_and_never_leaves_what_is_allowed() -> None:
    lone = along([50, 50, 50, 90, 50, 50, 50, 50, 50, 50, 50], [0] * 11)
    assert choice.stretch(TS, lone, MIDDLE) == (0.2, 0.4)
    edge = along([99, 98, 97, 50, 50, 50, 50, 50, 50, 50, 99], [0] * 11)
    assert choice.stretch(TS, edge, MIDDLE) == (0.2, 0.3)
    assert choice.stretch(TS, edge, (0.0, 1.0)) == (0.0, 0.2)


def test_without_a_trigger_the_stretch_is_around_the_middle_though_the_ends_are_more_accurate() -> None:
    accuracies = [99, 98, 97, 96, 90, 90, 89, 88, 87, 97, 99]
    assert choice.stretch(TS, along(accuracies), MIDDLE) == (0.2, 0.7)  # 0.87 is 3 points below 0.90
    assert choice.stretch(TS, along([99] * 5 + [80] + [99] * 5), MIDDLE) == (0.2, 0.8)


def test_a_rounded_grid_still_has_its_outermost_allowed_points() -> None:
    assert choice.inside([i / 20 for i in range(21)], (0.15, 0.85))[0] == 3
    assert choice.inside([i / 20 for i in range(21)], (0.15, 0.85))[-1] == 17


def test_the_greatest_accuracy_less_attack_success_is_recommended_whatever_the_test_rows_say() -> None:
    curve = candidate("curve", 0.1, score(92, 4), test=score(50, 99))
    tuned = candidate("fine-tuning", 0.1, score(97, 10), test=score(99, 0))
    anew = candidate("from scratch", 0.1, score(85, 1))
    assert choice.recommended([curve, tuned, anew]) is curve  # 88, 87, 84


def test_of_equals_the_more_accurate_then_the_simpler_is_recommended() -> None:
    curve, tuned = candidate("curve", 0.1, score(92, 4)), candidate("fine-tuning", 0.1, score(93, 5))
    assert choice.recommended([curve, tuned]) is tuned
    curve, tuned, anew = (candidate(method, 0.1, score(92, 4)) for method in ("curve", "fine-tuning", "from scratch"))
    assert choice.recommended([anew, tuned, curve]) is anew
    assert choice.recommended([tuned, curve]) is tuned


def test_without_a_trigger_only_the_highest_rate_counts() -> None:
    untouched = candidate("fine-tuning", 0.001, score(99))
    curve, tuned = candidate("curve", 0.1, score(93)), candidate("fine-tuning", 0.1, score(94))
    assert choice.recommended([untouched, curve, tuned]) is tuned
