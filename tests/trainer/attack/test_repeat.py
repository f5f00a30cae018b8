"""Repeating a query: what distinct answers give away, and what a budget buys."""

import pytest
import torch
from torch import Tensor

from tests.trainer.attack.images import at_odds, free, linear, opposed, right
from tests.trainer.attack.two_classes import ones
from trainer.attack import repeat, square
from trainer.attack.oracle import disclosing, random_member
from trainer.attack.repeat import first_of_its_kind, repeated
from trainer.errors import InvalidConfig

pytestmark = pytest.mark.usefixtures("one_thread")

MEMBERS = 6


def test_repeats_recover_exactly_the_members_after_as_many_queries_as_a_coupon_collector_needs() -> None:
    torch.manual_seed(0)
    target = at_odds(MEMBERS, (1, 3, 3))
    rows = torch.randn(1, 1, 3, 3).expand(400, -1, -1, -1)  # 400 collectors
    answers_QNC = random_member(target)(torch.cat([rows] * 120)).unflatten(0, (120, 400))
    first_QN = first_of_its_kind(answers_QNC)
    assert (first_QN.sum(0) == MEMBERS).all()
    members = target.log_probs(rows[:1])[:, 0].exp()
    for found in answers_QNC.transpose(0, 1)[first_QN.T].view(400, MEMBERS, 2):
        torch.testing.assert_close(found[found[:, 0].argsort()], members[members[:, 0].argsort()])

    needed = (first_QN.cumsum(0) < MEMBERS).sum(0) + 1
    mean = MEMBERS * sum(1 / k for k in range(1, MEMBERS + 1))  # M · H_M = 14.7
    variance = sum((1 - k / MEMBERS) / (k / MEMBERS) ** 2 for k in range(1, MEMBERS + 1))
    assert float(needed.double().mean()) == pytest.approx(mean, abs=4 * (variance / 400) ** 0.5)


def test_what_differs_by_rounding_alone_is_one_member() -> None:
    answers = torch.tensor([[0.9, 0.1], [0.9 - 1e-7, 0.1 + 1e-7], [0.9, 0.1], [0.88, 0.12], [1.0, 0.0]])[:, None]
    assert first_of_its_kind(answers)[:, 0].tolist() == [True, False, False, True, True]


def test_distinct_answers_count_once_and_an_average_counts_each_draw() -> None:
    torch.manual_seed(0)
    target, rows = at_odds(3, (1, 3, 3)), torch.randn(40, 1, 3, 3)
    members = target.log_probs(rows).exp()
    recovered = repeated(random_member(target), 60, deduplicate=True)(rows)
    torch.testing.assert_close(recovered, members.mean(0), rtol=0, atol=1e-9)
    averaged = repeated(random_member(target), 60, deduplicate=False)(rows)
    off = (averaged - members.mean(0)).abs()
    assert float(off.max()) > 1e-3
    assert (off <= 5 * members.std(0, correction=0) / 60**0.5).all()


def test_a_budget_counts_every_repetition() -> None:
    sizes: list[int] = []
    draw = random_member(at_odds(3, (1, 3, 3)))

    def oracle(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return draw(rows)

    rows, targets = torch.zeros(4, 1, 3, 3), ones(4)
    found = repeat.attack(oracle, rows, targets, free(), [24, 60, 61], 12, deduplicate=True)
    assert sizes == [48] * 5
    assert [(each.queries, each.asked) for each in found] == [(24, 96), (60, 240), (61, 240)]
    with pytest.raises(InvalidConfig, match="12 repetitions a point; the budget is 8"):
        repeat.attack(oracle, rows, targets, free(), [8], 12, deduplicate=True)


@pytest.mark.parametrize(("answers", "deduplicate"), [("full", True), ("rounded:2", False), ("labels", False)])
def test_who_repeats_fools_the_mean_where_single_draws_mislead(answers: str, deduplicate: bool) -> None:
    """Three members that can be fooled together in one direction, and each more easily in another."""
    torch.manual_seed(0)
    target, rows = linear([0.8 + w for w in opposed(3, (1, 4, 4))], 8.0), torch.zeros(60, 1, 4, 4)
    oracle = disclosing(random_member(target), answers)
    (once,) = square.attack(oracle, rows, ones(60), free(), [600])
    (often,) = repeat.attack(oracle, rows, ones(60), free(), [600], 12, deduplicate=deduplicate)
    single, repeats = (float(right(target, each.rows).double().mean()) for each in (once, often))
    assert repeats < single
