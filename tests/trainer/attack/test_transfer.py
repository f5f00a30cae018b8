"""Transfer, on a run of the real pipeline: whose weights are used, and what examples made with them do."""

import dataclasses

import pytest
import torch

from trainer import finished_run
from trainer.attack import transfer
from trainer.attack.ball import around
from trainer.errors import InvalidConfig
from trainer.finished_run import FinishedRun
from trainer.pipeline import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(small_run: Outcome) -> FinishedRun:
    return finished_run.load(small_run.report.parent)


def test_examples_fool_their_own_network_and_less_so_another(run: FinishedRun) -> None:
    torch.manual_seed(0)
    rows, targets = run.splits.test.inputs[:200], run.splits.test.targets[:200]
    public = transfer.public_endpoint(run)
    moved = transfer.examples(public, rows, targets, around(rows, "linf", 24.0), 10)
    assert torch.equal(moved, moved.round())
    assert float((moved - rows).abs().max()) <= 24.0
    other = transfer.from_another_run(run, run.splits)  # FGE's first snapshot: from the endpoint, not the endpoint
    with torch.no_grad():
        clean, own, others = (
            float((network(at).argmax(1) == targets).double().mean())
            for network, at in ((public, rows), (public, moved), (other, moved))
        )
    assert own < others < clean


def test_the_public_endpoint_is_the_first_endpoint_of_the_run(run: FinishedRun) -> None:
    rows = run.splits.test.inputs[:5]
    *_, statistics = run.members("curve")[0]
    with torch.no_grad(), run.network.evaluating():
        logits = run.network.logits(run.weights("curve", "endpoint-0"), statistics, rows)
        torch.testing.assert_close(transfer.public_endpoint(run)(rows), logits)


def test_an_outsider_is_a_network_that_no_other_method_was_made_of(run: FinishedRun) -> None:
    assert transfer.outsider(run) is None
    rows, members = run.splits.test.inputs[:5], run.ensembles["curve"]
    with_five = dataclasses.replace(run, ensembles=run.ensembles | {"ind": members})
    chosen = transfer.outsider(with_five)
    assert chosen is not None
    _, weights, statistics = run.members("curve")[-1]
    with torch.no_grad(), run.network.evaluating():
        torch.testing.assert_close(chosen(rows), run.network.logits(weights, statistics, rows))


def test_a_run_on_other_rows_or_without_a_curve_is_refused(run: FinishedRun) -> None:
    splits = dataclasses.replace(run.splits, class_labels=["a", "b"])
    with pytest.raises(InvalidConfig, match=r"has rows \[1, 8, 8\] of 10 classes; expected \[1, 8, 8\] of the same 2"):
        transfer.from_another_run(run, splits)
    without = dataclasses.replace(run, ensembles={"fge": run.ensembles["fge"]})
    with pytest.raises(InvalidConfig, match="has no curve; its methods are fge"):
        transfer.public_endpoint(without)
