import itertools

import numpy as np
import pytest

from serving.policy import Choice, Policy, assign


def test_mean_asks_every_member_about_every_row() -> None:
    assert assign(Choice(Policy.MEAN), 3, 4).all()


def test_members_asks_the_chosen_ones() -> None:
    mask_MB = assign(Choice(Policy.MEMBERS, (3, 0)), 2, 4)
    assert mask_MB.tolist() == [[True, True], [False, False], [False, False], [True, True]]


def test_random_draws_once_a_row_from_the_source_it_is_given() -> None:
    draws = iter([2, 0, 2])
    mask_MB = assign(Choice(Policy.RANDOM), 3, 4, draw=lambda below: next(draws))
    assert mask_MB.argmax(0).tolist() == [2, 0, 2]
    assert (mask_MB.sum(0) == 1).all()


def test_random_is_uniform_and_independent_from_row_to_row() -> None:
    from scipy.stats import chisquare

    drawn = assign(Choice(Policy.RANDOM), 20_000, 5).argmax(0)
    assert chisquare(np.bincount(drawn, minlength=5)).pvalue > 1e-6
    pairs = np.bincount(drawn[:-1] * 5 + drawn[1:], minlength=25)
    assert chisquare(pairs).pvalue > 1e-6


@pytest.mark.parametrize(
    ("choice", "run"),
    [
        (Choice(Policy.MEAN), 4),
        (Choice(Policy.MEMBERS, (1, 2)), 2),
        (Choice(Policy.RANDOM), 1),
        (Choice(Policy.CASCADE), 0),
    ],
)
def test_each_row_gets_as_many_members_as_the_policy_says(choice: Choice, run: int) -> None:
    assert set(itertools.chain(assign(choice, 7, 4).sum(0).tolist())) == {run}
