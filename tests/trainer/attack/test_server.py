"""Attacks through a live server: its answers are the ones in this process, and it is refused where it does not fit."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny_ensemble
from tests.server_process import ServerProcess
from trainer import finished_run
from trainer.attack import square, target
from trainer.attack.ball import around, floats
from trainer.attack.oracle import OutOfQueries, random_member
from trainer.attack.repeat import first_of_its_kind
from trainer.attack.scores import judge
from trainer.attack.server import ServerOracle, decimals
from trainer.errors import UserError
from trainer.pipeline import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def server(tiny_directory: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_directory, "--policy", "random") as server:
        yield server


def oracle(server: ServerProcess, like: torch.Tensor = ROWS, classes: int = 3) -> ServerOracle:
    return ServerOracle(server.grpc, "tiny", like, classes)


def test_answers_are_the_members_own_in_the_order_of_the_rows_and_every_row_is_counted(server: ServerProcess) -> None:
    rows = torch.randn(1000, 4)  # many requests, several at a time
    members = torch.from_numpy(tiny_ensemble.member_probs(rows.numpy())).float()
    with oracle(server) as asked:
        answers = asked(rows)
        assert asked.queries == 1000
        asked(rows[:3])
        assert asked.queries == 1003
        assert asked.answers == "full"
    assert float((members - answers).abs().amax(2).amin(0).max()) < 1e-6


def test_what_is_recovered_from_a_live_server_is_its_members(server: ServerProcess) -> None:
    with oracle(server) as asked:
        answers_QNC = asked(torch.cat([ROWS] * 80)).unflatten(0, (80, 7))
    assert first_of_its_kind(answers_QNC).sum(0).tolist() == [4] * 7


@pytest.mark.parametrize(
    ("arguments", "answers"), [(("--round-probs", "2"), "rounded:2"), (("--labels-only",), "labels")]
)
def test_what_a_server_discloses_is_seen_in_its_answers(
    tiny_directory: Path, arguments: tuple[str, ...], answers: str
) -> None:
    with ServerProcess(tiny_directory, *arguments) as server, oracle(server) as asked:
        found = asked(ROWS)
        assert asked.answers == answers
    exact = tiny_ensemble.pooled_probs(ROWS.numpy())
    assert float((found - torch.from_numpy(exact)).abs().max()) < (1.0 if answers == "labels" else 0.01)
    assert np.array_equal(found.argmax(1).numpy(), exact.argmax(1))
    assert torch.equal(found.sum(1), torch.ones(7))


def test_decimals_are_told_from_answers_alone() -> None:
    probs = torch.softmax(3 * torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 1)
    for count in range(7):
        assert decimals(probs.round(decimals=count).float()) == count
    assert decimals(probs.float()) == 7
    assert decimals(torch.tensor([[1.0, 1e-9]])) == 7  # nearly 0 is not a rounded 0
    assert decimals(torch.tensor([[1.0, 0.0]]), 2) == 2


def test_a_model_that_does_not_fit_is_refused_before_a_row_is_sent(server: ServerProcess) -> None:
    where = f"model 'tiny' at '{server.grpc}'"
    for like, classes, message in (
        (ROWS[:, :3], 3, rf"{where} takes \[\('input', 'FP32', \[4\]\)\]; expected one input of FP32 \[3\]"),
        (ROWS.byte(), 3, r"expected one input of UINT8 \[4\]"),
        (ROWS, 5, f"{where} has 3 classes; expected 5"),
    ):
        with pytest.raises(UserError, match=message):
            oracle(server, like, classes)
    with pytest.raises(UserError, match="said NOT_FOUND after 0 queries: unknown model 'tin'"):
        ServerOracle(server.grpc, "tin", ROWS, 3)


def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"'127\.0\.0\.1:9' said UNAVAILABLE after 0 queries: "):
        ServerOracle("127.0.0.1:9", "tiny", ROWS, 3, timeout_s=5)


def test_a_query_budget_that_is_used_up_is_told_from_a_server_that_is_gone(tiny_directory: Path) -> None:
    limits = ("--client-identity", "address", "--query-budget-rate", "0.01", "--query-budget-burst", "100")
    with ServerProcess(tiny_directory, *limits) as server, oracle(server) as asked:
        for _ in range(14):
            asked(ROWS)
        with pytest.raises(OutOfQueries, match=r"said RESOURCE_EXHAUSTED after 98 queries: .*query budget is used up"):
            asked(ROWS)
        server.stop()
        with pytest.raises(UserError, match="said UNAVAILABLE after 98 queries"):
            asked(ROWS)


@pytest.mark.parametrize(("count", "queries"), [(60, 100), pytest.param(300, 500, marks=pytest.mark.slow)])
def test_the_attack_through_a_server_and_the_one_in_this_process_agree(
    small_run: Outcome, count: int, queries: int
) -> None:
    """Square with fresh draws on digits; both scored exactly, over all members."""
    run = finished_run.load(small_run.report.parent)
    ensemble = target.load(run, "curve")
    rows, targets = run.splits.test.inputs[:count], run.splits.test.targets[:count]
    ball, budget = around(rows, "linf", 24.0), [queries]
    torch.manual_seed(0)
    (here,) = square.attack(random_member(ensemble), floats(rows), targets, ball, budget)
    options = ("--policy", "random", "--max-batch-rows", "128")
    with (
        ServerProcess(small_run.ensembles["curve"], *options) as server,
        ServerOracle(server.grpc, "digits", rows, 10) as asked,
    ):
        (there,) = square.attack(asked, floats(rows), targets, ball, budget)
        assert asked.queries == there.asked == count * queries
    clean, ours, theirs = (
        judge(ensemble, at, targets).accuracy().expected for at in (floats(rows), here.rows, there.rows)
    )
    assert ours.low <= theirs.value <= ours.high
    assert theirs.low <= ours.value <= theirs.high
    assert theirs.value < clean.low  # it did something
