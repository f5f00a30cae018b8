"""Accuracies against counts by hand, intervals against closed forms and scipy's own."""

import pytest
import torch
from scipy.stats import binom, binomtest

from trainer.attack.scores import Right, clopper_pearson, score, wilson, worst


def one_hot(*answers: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), 3).double()


def test_accuracies_are_counted_over_all_members() -> None:
    targets = torch.tensor([0, 1, 2, 0])
    log_probs = torch.stack([one_hot(0, 1, 2, 1), one_hot(0, 1, 0, 1), one_hot(0, 2, 0, 1)])
    found = score(log_probs, one_hot(0, 1, 0, 0), targets)
    assert found.rows == 4
    assert found.expected.value == pytest.approx((3 + 2 + 1 + 0) / 12)
    assert found.mean
    assert found.all_members
    assert (found.mean.value, found.all_members.value) == (0.75, 0.25)


def test_the_worst_is_taken_row_by_row_and_for_each_policy() -> None:
    """One attack beats members on the first row, the other on the second; the mean falls to one on the third alone."""
    first = Right(torch.tensor([[0, 1, 1], [1, 1, 1]]).bool(), torch.tensor([1, 1, 0]).bool())
    second = Right(torch.tensor([[1, 0, 1], [1, 0, 1]]).bool(), torch.tensor([1, 1, 1]).bool())
    found = worst([first, second])
    assert found.expected.value == pytest.approx((1 + 0 + 2) / 6)
    assert found.mean
    assert found.all_members
    assert found.mean.value == pytest.approx(2 / 3)
    assert found.all_members.value == pytest.approx(1 / 3)


def test_clopper_pearson_is_the_closed_form_where_all_or_none_are_right() -> None:
    none, every = clopper_pearson(0, 50), clopper_pearson(50, 50)
    assert (none.low, every.high) == (0.0, 1.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert every.low == pytest.approx(0.025 ** (1 / 50))


@pytest.mark.parametrize("right", [0, 1, 17, 200, 499, 500])
def test_intervals_of_counts_are_scipys(right: int) -> None:
    for share, method in ((clopper_pearson(right, 500), "exact"), (wilson(right / 500, 500), "wilson")):
        theirs = binomtest(right, 500).proportion_ci(0.95, method)
        assert (share.value, share.low, share.high) == pytest.approx((right / 500, theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.97])
def test_clopper_pearson_covers_at_least_as_often_as_it_says(p: float) -> None:
    covered = [k for k in range(81) if (share := clopper_pearson(k, 80)).low <= p <= share.high]
    assert 0.95 <= sum(binom.pmf(k, 80, p) for k in covered) < 0.999


def test_wilson_covers_means_of_shares_more_often_than_those_of_zeros_and_ones() -> None:
    """Of M members a row's share of right ones varies less than a single one that is drawn."""
    generator = torch.Generator().manual_seed(0)
    row_p = torch.rand(2000, 200, generator=generator) * 0.4 + 0.4  # mean 0.6
    shares = torch.binomial(torch.full_like(row_p, 5.0), row_p, generator=generator).mean(1) / 5
    found = [wilson(float(value), 200) for value in shares]
    assert sum(share.low <= 0.6 <= share.high for share in found) / len(found) > 0.99
