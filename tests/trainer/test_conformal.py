"""Thresholds against the definition, and against what they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import conformal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("rows", "level", "rank"),
    [(99, 0.9, 90), (100, 0.9, 91), (19, 0.95, 19), (300, 0.99, 298), (299, 0.5, 150), (999, 0.999, 999)],
)
def test_the_quantile_is_the_score_of_the_rank_that_the_theorem_says(rows: int, level: float, rank: int) -> None:
    scores = torch.randperm(rows, generator=torch.Generator().manual_seed(0)) + 1
    assert conformal.quantile(scores[:, None].double(), level) == rank


@pytest.mark.parametrize(("rows", "level"), [(18, 0.95), (298, 0.999), (1, 0.9)])
def test_too_few_rows_promise_nothing(rows: int, level: float) -> None:
    assert conformal.quantile(torch.zeros(rows, 3), level) == math.inf


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.sampled_from(conformal.LEVELS), st.integers(1, 4))
def test_repeating_each_rows_score_changes_nothing(values: list[int], level: float, draws: int) -> None:
    scores = torch.tensor(values, dtype=torch.float64)[:, None]
    assert conformal.quantile(scores.repeat(1, draws), level) == conformal.quantile(scores, level)


def test_the_threshold_is_the_least_that_keeps_the_average_share_of_a_rows_draws_within_bounds() -> None:
    draw = np.random.default_rng(0)
    for rows, draws, level in ((40, 3, 0.9), (57, 5, 0.8), (200, 2, 0.95), (30, 7, 0.5)):
        scores = draw.random((rows, draws)).round(2)
        allowed = [
            value
            for value in np.unique(scores)
            if ((scores > value).mean(1).sum() + 1) / (rows + 1) <= 1 - level + 1e-9
        ]
        assert conformal.quantile(torch.from_numpy(scores), level) == min(allowed)


def test_draws_of_unequal_chance_count_as_often_as_they_come() -> None:
    """Against each draw repeated as often as its chance says."""
    scores = torch.from_numpy(np.random.default_rng(0).random((60, 3)).round(2))
    repeated = scores[:, [0, 1, 1, 1, 2, 2]]
    for level in (0.5, 0.8, 0.9, 0.95):
        chances = torch.tensor([1, 3, 2], dtype=torch.float64) / 6
        assert conformal.quantile(scores, level, chances) == conformal.quantile(repeated, level)


def test_a_curves_member_has_the_chance_of_the_stretch_nearest_to_it() -> None:
    assert conformal.curve_chances([0.0, 0.25, 1.0]).tolist() == [0.125, 0.5, 0.375]


def test_a_score_is_what_the_true_class_lacks_of_certainty() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])
    found = conformal.scores(probs, torch.tensor([2, 0]))
    assert found.tolist() == pytest.approx([0.7, 0.1])
    both = conformal.random_scores(probs.log().clamp(min=-100).expand(4, 2, 3), torch.ones(4), torch.tensor([2, 0]))
    np.testing.assert_allclose(both, found[:, None].expand(2, 4), atol=1e-6)


@pytest.mark.parametrize("policy", ["mean", "random"])
def test_sets_cover_new_rows_as_often_as_they_promise(policy: str) -> None:
    """Classes drawn from known probabilities: no rows are like others only on paper."""
    generator = torch.Generator().manual_seed(0)
    members, rows, classes, level = 5, 199, 6, 0.9
    covered, count = 0, 0
    for _ in range(60):
        logits = torch.randn(members, rows + 100, classes, generator=generator) * 2
        truth = torch.softmax(logits.mean(0), -1)
        targets = torch.multinomial(truth, 1, generator=generator)[:, 0]
        if policy == "mean":
            scores = conformal.scores(torch.softmax(logits.double(), -1).mean(0), targets)[:, None]
        else:
            scores = conformal.random_scores(logits, torch.ones(members), targets)
        threshold = conformal.quantile(scores[:rows], level)
        drawn = torch.randint(scores.shape[1], (100, 1), generator=generator)
        covered += int((scores[rows:].gather(1, drawn) <= threshold).sum())
        count += 100
    # Between the level and the level + 1 / (rows + 1); the spread of 60 fits is the larger part of the noise.
    spread = math.sqrt(level * (1 - level) * (1 / count + 1 / (60 * rows)))
    assert level - 4 * spread <= covered / count <= level + 1 / (rows + 1) + 4 * spread


def test_levels_beyond_the_rows_get_every_class() -> None:
    stored = conformal.to_proto("mean", torch.rand(99, 1, dtype=torch.float64))
    by_level = {entry.level: entry.threshold for entry in stored.thresholds}
    assert stored.rows == 99
    assert by_level[0.99] < 1.0
    assert by_level[0.995] == by_level[0.999] == 1.0
