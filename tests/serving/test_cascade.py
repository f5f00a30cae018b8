"""Policy `cascade` against the definition, alone and in batches with other policies."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from protos.ensemble_pb2 import Cascade as Stored
from protos.ensemble_pb2 import CascadeStage
from protos.validate import validate
from serving import ensemble as ensembles
from serving.batcher import Work
from serving.cascade import Cascade
from serving.client import Client
from serving.ensemble import Ensemble
from serving.networks.engines.lanes import Steps
from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.policy import Choice, Policy
from serving.prediction import Prediction
from serving.telemetry.metrics import Metrics
from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


@pytest.fixture
def ensemble(tiny_directory: Path) -> Iterator[Ensemble]:
    made = ensembles.load(validate(tiny_directory), OnnxCpu(1), Metrics())
    yield made
    made.close()


def work(rows: NDArray[np.float32], choice: Choice, deadline: float | None = None) -> Work:
    return Work(rows, choice, deadline, answer=cast(Any, None))


def answered(ensemble: Ensemble, *works: Work) -> list[Prediction]:
    answers = ensemble._executor._engine.run(ensemble.execute(works))
    assert all(isinstance(answer, Prediction) for answer in answers)
    return answers  # type: ignore[return-value]


def test_answers_equal_the_definition_and_say_how_many_members_each_row_took(tiny_server: ServerProcess) -> None:
    with Client(tiny_server.grpc, "tiny") as client:
        answer = client.predict(ROWS, policy="cascade", also=["members_run"])
    probs, run = tiny_ensemble.cascade_probs(ROWS)
    np.testing.assert_allclose(answer.probs, probs, atol=1e-6)
    assert answer.outputs["members_run"].tolist() == run
    assert set(run) == {1, 2, 3, 4}
    assert (answer.policy, answer.members_run) == ("cascade", 4)


def test_policies_share_a_batch_and_change_nothing_for_each_other(ensemble: Ensemble) -> None:
    choices = [Choice(Policy.CASCADE), Choice(Policy.MEAN), Choice(Policy.MEMBERS, (2, 0)), Choice(Policy.CASCADE)]
    parts = np.split(ROWS, 4)
    first, mean, members, last = answered(ensemble, *map(work, parts, choices))
    for found, rows in ((first, parts[0]), (last, parts[3])):
        probs, run = tiny_ensemble.cascade_probs(rows)
        np.testing.assert_allclose(found.probs_BC, probs, atol=1e-6)
        assert found.members_run_B.tolist() == run
        np.testing.assert_array_equal((found.member_probs_BMC.sum(-1) > 0.5).sum(1), run)
    np.testing.assert_allclose(mean.probs_BC, tiny_ensemble.pooled_probs(parts[1]), atol=1e-6)
    np.testing.assert_allclose(members.probs_BC, tiny_ensemble.pooled_probs(parts[2], [2, 0]), atol=1e-6)
    assert mean.members_run_B.tolist() == [4] * 15
    assert members.members_run_B.tolist() == [2] * 15


class Recorder:
    """Members that answer as the test says; records which rows each is asked about."""

    def __init__(self, logits_MBC: NDArray[np.float64]) -> None:
        self.logits_MBC = logits_MBC.astype(np.float32)
        self.asked: list[tuple[int, list[int]]] = []

    def run(self, inputs: NDArray[np.generic], mask_MB: NDArray[np.bool_]) -> Steps[NDArray[np.float32]]:
        yield []
        (member,) = np.flatnonzero(mask_MB.any(axis=1))
        assert mask_MB[member].all()
        rows = inputs[:, 0].astype(int)
        self.asked.append((int(member), rows.tolist()))
        return np.where(mask_MB[:, :, None], self.logits_MBC[:, rows], 0.0).astype(np.float32)


def run(logits_MBC: NDArray[np.float64], deadline_B: list[float], threshold: float = 0.7) -> tuple[Recorder, list[int]]:
    """Three members in the order 2, 0, 1, at noon."""
    stages = [CascadeStage(member=name, temperature=1.0, threshold=threshold) for name in "ca"]
    cascade = Cascade(Stored(stages=[*stages, CascadeStage(member="b", temperature=1.0)]), "abc", np.ones(3))
    recorder = Recorder(logits_MBC)
    inputs = np.arange(logits_MBC.shape[1], dtype=np.float32)[:, None]
    mask_MB, rows_B = np.zeros(logits_MBC.shape[:2], np.bool_), np.ones(len(inputs), np.bool_)
    cascade.start(mask_MB, rows_B)

    def steps() -> Steps[None]:
        logits = yield from recorder.run(inputs, mask_MB)
        deadlines = np.array(deadline_B)
        yield from cascade.go_on(recorder.run, inputs, logits, mask_MB, rows_B, deadlines, clock=lambda: 12.0)

    assert all(calls == [] for calls in steps())
    return recorder, mask_MB.sum(0).tolist()


def test_a_row_that_is_sure_enough_is_not_run_again() -> None:
    logits_MBC = np.zeros((3, 3, 2))
    logits_MBC[2, 0, 1] = 9.0  # sure at once
    logits_MBC[0, 1, 1] = 9.0  # at the second member the mean is 3/4
    recorder, members_run = run(logits_MBC, [math.inf] * 3)
    assert recorder.asked == [(2, [0, 1, 2]), (0, [1, 2]), (1, [2])]
    assert members_run == [1, 2, 3]


def test_after_its_deadline_no_further_member_is_begun_for_a_row() -> None:
    recorder, members_run = run(np.zeros((3, 3, 2)), [math.inf, 11.0, 12.5])
    assert recorder.asked == [(2, [0, 1, 2]), (0, [0, 2]), (1, [0, 2])]
    assert members_run == [3, 1, 3]


def test_a_threshold_of_one_is_never_exceeded() -> None:
    logits_MBC = np.zeros((3, 2, 2))
    logits_MBC[:, :, 1] = 1e4
    assert run(logits_MBC, [math.inf] * 2, threshold=1.0)[1] == [3, 3]


def test_logits_that_are_not_finite_stop_their_row_alone() -> None:
    logits_MBC = np.zeros((3, 2, 2))
    logits_MBC[2, 0] = np.nan
    assert run(logits_MBC, [math.inf] * 2)[1] == [1, 3]


def test_a_server_may_answer_everything_so(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory, "--policy", "cascade") as server, Client(server.grpc, "tiny") as client:
        answer = client.predict(ROWS, policy="mean", also=["members_run"])
    assert (answer.policy, answer.outputs["members_run"].tolist()) == ("cascade", tiny_ensemble.cascade_probs(ROWS)[1])


def test_a_server_does_not_start_so_without_a_cascade(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "single", members=1)
    with pytest.raises(RuntimeError, match="--policy cascade: the manifest of 'tiny' has no cascade"):
        ServerProcess(tmp_path / "single", "--policy", "cascade")


def test_an_ensemble_without_a_cascade_says_so(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "single", members=1)
    with ServerProcess(tmp_path / "single") as server, Client(server.grpc, "tiny") as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.predict(ROWS, policy="cascade")
        assert client.predict(ROWS).members_run == 1
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "policy 'cascade' was asked for; the manifest has no cascade"
