"""Square attack: closed forms, the ball, AutoAttack's own, and why a member may never be chosen by the input."""

import zlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.attack.images import at_odds, free, linear, right
from tests.trainer.attack.two_classes import ones
from trainer import finished_run
from trainer.attack import exported, square
from trainer.attack.ball import around, floats
from trainer.attack.oracle import Oracle, OutOfQueries, disclosing, mean, random_member
from trainer.attack.scores import clopper_pearson, judge
from trainer.attack.target import Target, load
from trainer.errors import InvalidConfig
from trainer.pipeline import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("norm", "reached"), [("linf", 1.0), ("l2", 0.6)])
def test_against_a_linear_score_it_comes_to_the_worst_row_of_the_ball(norm: str, reached: float) -> None:
    torch.manual_seed(0)  # L2 moves by smooth patterns of nine pixels or more, so not all the way to a rough w
    w, rows = torch.randn(2, 6, 6), torch.randn(8, 2, 6, 6)
    (found,) = square.attack(mean(linear([w], 30.0)), rows, ones(8), free(norm, 0.5), [1000])
    worst = 0.5 * (w.abs().sum() if norm == "linf" else w.norm())  # the most by which w · x can fall
    fallen = -((found.rows - rows) * w).flatten(1).sum(1)
    assert (fallen >= reached * worst * (1 - 1e-6)).all()
    assert (fallen <= worst * (1 + 1e-6)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 1, 4)])
def test_every_query_lies_in_the_ball_and_is_a_picture_that_a_client_can_send(
    norm: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    rows = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
    rows[0], rows[1] = 0, 255
    asked = []

    def oracle(sent: Tensor) -> Tensor:
        asked.append(sent)
        return torch.rand(len(sent), 3)

    (found,) = square.attack(oracle, floats(rows), ones(6), around(rows, norm, 40.5), [60])
    assert len(asked) == 60
    for sent in (*asked, found.rows):
        assert torch.equal(sent, sent.round())
        assert 0.0 <= float(sent.min()) <= float(sent.max()) <= 255.0
        lengths = (sent - rows.float()).flatten(1).norm(dim=1, p=torch.inf if norm == "linf" else 2)
        assert float(lengths.max()) <= 40.5
    assert len(torch.unique(torch.stack(asked), dim=0)) > 30  # it moves


def test_snapshots_are_of_one_trajectory_and_count_its_queries() -> None:
    oracle = random_member(at_odds(3, (1, 4, 4)))
    runs = []
    for budgets in ([10, 25, 60], [60]):
        torch.manual_seed(0)
        runs.append(square.attack(oracle, torch.zeros(7, 1, 4, 4), ones(7), free(), budgets))
    assert [(each.queries, each.asked) for each in runs[0]] == [(10, 70), (25, 175), (60, 420)]
    assert torch.equal(runs[0][-1].rows, runs[1][-1].rows)
    assert not torch.equal(runs[0][0].rows, runs[0][1].rows)


def test_an_oracle_that_draws_is_asked_to_the_end_and_keeps_the_point_of_the_lowest_answer() -> None:
    torch.manual_seed(0)
    seen: list[tuple[Tensor, Tensor]] = []

    def oracle(rows: Tensor) -> Tensor:
        answers = torch.rand(len(rows), 2)
        seen.append((rows.clone(), square.margin(answers, ones(len(rows)))))
        return answers  # half of them wrong from the first query on

    (found,) = square.attack(oracle, torch.zeros(5, 1, 4, 4), ones(5), free(), [40])
    assert [len(rows) for rows, _ in seen] == [5] * 40
    lowest = torch.stack([margin for _, margin in seen]).argmin(0)
    for row, query in enumerate(lowest.tolist()):
        assert torch.equal(found.rows[row], seen[query][0][row])


def test_a_row_that_a_deterministic_oracle_answers_wrongly_is_asked_about_no_more() -> None:
    torch.manual_seed(0)
    single = at_odds(2, (1, 4, 4)).member(0)
    rows = torch.zeros(20, 1, 4, 4)
    (found,) = square.attack(mean(single), rows, ones(20), free(), [2000], stop_when_fooled=True)
    assert not right(single, found.rows).any()
    assert 20 < found.asked < 20 * 2000


def test_from_labels_alone_it_still_crosses_a_near_boundary() -> None:
    """With nothing to descend it walks at random; what it finds is what chance finds."""
    torch.manual_seed(0)
    w = torch.randn(1, 4, 4)
    target, rows = linear([w], 0.3 * float(w.abs().sum())), torch.zeros(50, 1, 4, 4)
    oracle = disclosing(mean(target), "labels")
    (found,) = square.attack(oracle, rows, ones(50), free(), [500], stop_when_fooled=True)
    assert int(right(target, found.rows).sum()) < 5


def test_where_the_oracle_runs_out_the_attack_ends_with_what_it_has() -> None:
    torch.manual_seed(0)
    left = [100]

    def oracle(rows: Tensor) -> Tensor:
        if left[0] < len(rows):
            raise OutOfQueries("no more today")
        left[0] -= len(rows)
        return torch.rand(len(rows), 2)

    found = square.attack(oracle, torch.zeros(10, 1, 4, 4), ones(10), free(), [5, 50, 500])
    assert [(each.queries, each.asked) for each in found] == [(5, 50), (50, 100), (500, 100)]
    assert torch.equal(found[1].rows, found[2].rows)


def test_rows_that_are_no_images_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"rows are \[4\]; Square attacks images"):
        square.attack(lambda rows: rows, torch.zeros(2, 4), ones(2), free(), [10])


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Fitted to clouds of pictures that come near each other, so that Square breaks some and not others."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(300, 32), nn.ReLU(), nn.Linear(32, 3))
    rows, targets = pictures(600)
    optimiser = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(rows / 255), targets).backward()
        optimiser.step()
    return module.requires_grad_(False)


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Three classes, [3, 10, 10], each its own pattern and noise."""
    patterns = torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(7)) * 30 + 100
    targets = torch.arange(count) % 3
    return (patterns[targets] + 25 * torch.randn(count, 3, 10, 10)).clamp(0, 255).round(), targets


@pytest.mark.parametrize(
    ("norm", "theirs", "epsilon"), [("linf", "Linf", 6.0), pytest.param("l2", "L2", 100.0, marks=pytest.mark.slow)]
)
def test_as_many_rows_withstand_it_as_autoattacks_square(
    network: nn.Module, norm: str, theirs: str, epsilon: float
) -> None:
    """One network, the same rows and budget, pyautoattack's implementation."""
    from pyautoattack.square import SquareAttack

    class ToTheEdge(SquareAttack):  # type: ignore[misc]
        """Theirs never moves the last line and column of pixels: it draws corners below H − s, which is one too few."""

        def random_int(self, low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> Tensor:
            return super().random_int(low, high + 1, shape)

    torch.manual_seed(1)
    rows, targets = pictures(300)
    answered = network(rows / 255).argmax(1) == targets
    rows, targets = rows[answered], targets[answered]

    def oracle(sent: Tensor) -> Tensor:
        return torch.softmax(network(sent / 255).double(), 1)

    ball = around(rows.byte(), norm, epsilon)
    (found,) = square.attack(oracle, rows, targets, ball, [300], stop_when_fooled=True)
    moved = ToTheEdge(network, norm=theirs, n_queries=300, eps=epsilon / 255, seed=0).perturb(rows / 255, targets)
    ours, others = (int((network(x).argmax(1) == targets).sum()) for x in (found.rows / 255, moved))
    share = clopper_pearson(others, len(rows))
    assert 0.1 < share.value < 0.9  # so that a difference would show
    assert share.low <= ours / len(rows) <= share.high


def keyed_by_row(target: Target) -> Oracle:
    """The wrong way to choose a member: a hash of the row."""

    def answer(sent: Tensor) -> Tensor:
        chosen = torch.tensor([zlib.crc32(row.numpy().tobytes()) % len(target) for row in sent])
        return target.log_probs(sent).exp()[chosen, torch.arange(len(sent))]

    return torch.no_grad()(answer)


def test_a_member_keyed_by_the_input_is_broken_and_one_drawn_afresh_is_not() -> None:
    """Never serve this: the regression that keeps anyone from adding it.

    Choosing the member by a hash of the row looks like a random choice that costs nothing and can be repeated. But
    every small change draws again, and the attacker keeps the draw that was wrong. Fresh draws have no such point: here
    no row of the ball fools more than one of three members, so two in three answers stay right whatever is sent.
    """
    target, rows, targets = at_odds(3, (1, 6, 6)), torch.zeros(100, 1, 6, 6), ones(100)

    keyed = keyed_by_row(target)
    torch.manual_seed(0)
    (fixed,) = square.attack(keyed, rows, targets, free(), [1000], stop_when_fooled=True)
    (fresh,) = square.attack(random_member(target), rows, targets, free(), [1000])
    under_key = clopper_pearson(int((keyed(fixed.rows).argmax(1) == targets).sum()), 100)
    drawn = clopper_pearson(int((random_member(target)(fresh.rows).argmax(1) == targets).sum()), 100)
    assert under_key.high < 0.25
    assert drawn.low > 0.5
    assert float(right(target, fresh.rows).double().mean()) >= 2 / 3  # exactly, over all draws


@pytest.mark.slow
def test_keyed_members_of_a_curve_on_digits_are_broken_where_fresh_draws_hold(small_run: Outcome) -> None:
    run = finished_run.load(small_run.report.parent)
    target = exported.load(run, "curve", load(run, "curve"))
    rows, targets = run.splits.test.inputs[:200], run.splits.test.targets[:200]
    clean, ball = floats(rows), around(rows, "linf", 20.0)
    keyed = keyed_by_row(target)
    torch.manual_seed(0)
    (fixed,) = square.attack(keyed, clean, targets, ball, [500], stop_when_fooled=True)
    (fresh,) = square.attack(random_member(target), clean, targets, ball, [500])
    under_key = clopper_pearson(int((keyed(fixed.rows).argmax(1) == targets).sum()), 200)
    drawn = judge(target, fresh.rows, targets).accuracy().expected
    assert under_key.high < drawn.low
