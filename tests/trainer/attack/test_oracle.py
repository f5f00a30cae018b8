"""What an outsider has: fresh draws, the server's rounding, rows that can be sent, passes that can be counted."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from serving.outputs import Disclosure
from tests.trainer.attack.images import at_odds, free, right
from tests.trainer.attack.two_classes import ones
from trainer.attack import oracle
from trainer.attack.ball import around, floats
from trainer.errors import InvalidConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_row_of_every_call_is_answered_by_a_member_drawn_afresh() -> None:
    torch.manual_seed(0)
    target = at_odds(4, (1, 3, 3))
    rows = torch.randn(1, 1, 3, 3).expand(1000, -1, -1, -1)
    members = target.log_probs(rows[:1])[:, 0, 0].exp()
    answer = oracle.random_member(target)
    drawn = torch.stack([(answer(rows)[:, :1] - members).abs().argmin(1) for _ in range(4)])
    assert chisquare(np.bincount(drawn.flatten(), minlength=4)).pvalue > 1e-6
    for first, second in ((drawn[0], drawn[1]), (drawn[:, :-1], drawn[:, 1:])):  # the next call, the next row
        assert float((first == second).double().mean()) == pytest.approx(0.25, abs=0.05)


def test_each_row_gets_the_answer_of_its_own_network() -> None:
    torch.manual_seed(0)
    rows = torch.arange(50.0)[:, None]
    answers = oracle.dealt(rows, 7, lambda network, part: part + 1000 * (network + 1))
    assert torch.equal(answers % 1000, rows)
    assert len((answers // 1000).unique()) == 7


@pytest.mark.parametrize("decimals", [0, 2, 5])
def test_rounded_answers_are_the_servers(decimals: int) -> None:
    torch.manual_seed(0)
    probs = torch.softmax(4 * torch.randn(500, 7, dtype=torch.float64), 1)
    theirs = Disclosure(decimals).probs(probs.numpy())
    np.testing.assert_array_equal(oracle.disclosing(lambda rows: rows, f"rounded:{decimals}")(probs).numpy(), theirs)


def test_labels_are_one_hot_and_unknown_precisions_are_refused() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    assert oracle.disclosing(lambda rows: rows, "labels")(probs).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert oracle.disclosing(lambda rows: rows, "full")(probs) is probs
    for answers in ("rounded", "rounded:9", "rounded:", "members"):
        with pytest.raises(InvalidConfig, match=f"--answers is '{answers}'; expected full, labels, or rounded:N"):
            oracle.disclosing(lambda rows: rows, answers)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_sent_is_the_nearest_picture_within_the_ball(norm: str) -> None:
    torch.manual_seed(0)
    order = torch.inf if norm == "linf" else 2
    rows, epsilon = torch.randint(0, 256, (200, 1, 4, 4), dtype=torch.uint8), 20.0
    shift = 300 * torch.randn(200, 1, 4, 4)
    shift *= epsilon / shift.flatten(1).norm(dim=1, p=order)[:, None, None, None]
    clean, ball = floats(rows), around(rows, norm, epsilon)
    sent = clean + oracle.sendable(ball, clean, shift)
    assert torch.equal(sent, sent.round())
    assert 0 <= sent.min() <= sent.max() <= 255
    assert float((sent - rows).flatten(1).norm(dim=1, p=order).max()) <= epsilon
    moved = (rows + shift).clamp(0, 255)
    assert float((sent - moved).abs().max()) < 1.0
    inside = clean + oracle.sendable(ball, clean, 0.5 * shift)
    assert float((inside - (rows + 0.5 * shift).clamp(0, 255)).abs().max()) < 0.5001
    assert oracle.sendable(free(norm, epsilon), clean, shift) is shift


def test_accuracy_over_passes_is_the_share_of_members_that_are_right() -> None:
    torch.manual_seed(0)
    target = at_odds(4, (1, 4, 4))
    rows = 4.0 * torch.randn(40, 1, 4, 4)
    exact = right(target, rows).double().mean(0)
    assert float(exact.std()) > 0.1
    found = oracle.accuracy(oracle.random_member(target), rows, ones(40), passes=400)
    assert (found - exact).abs().max() <= 5 * 0.5 / 400**0.5
    assert torch.equal(
        oracle.accuracy(oracle.mean(target), rows, ones(40)), (target.mean(rows).argmax(1) == 1).double()
    )
