"""What is asked in this process answers as torch does, and takes what a client can send."""

import pytest
import torch

from trainer import finished_run
from trainer.attack import exported, target
from trainer.pipeline import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")


def test_exported_members_answer_as_those_in_torch(small_run: Outcome) -> None:
    run = finished_run.load(small_run.report.parent)
    rows = run.splits.test.inputs[:100].float()
    networks = target.load(run, "curve")
    graphs = exported.load(run, "curve", networks)
    with torch.no_grad():
        torch.testing.assert_close(graphs.log_probs(rows), networks.log_probs(rows), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(graphs.mean(rows), networks.mean(rows), rtol=0, atol=1e-5)
        assert len(graphs.member(0)) == 1
        torch.testing.assert_close(graphs.member(0).mean(rows), networks.member(0).mean(rows), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="rows hold values that uint8 does not have"):
        graphs.mean(rows + 0.5)
