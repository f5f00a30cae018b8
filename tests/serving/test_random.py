"""Policy `random`: every row its own member, and a server that answers so whatever a client asks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from scipy.stats import chisquare

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.client import Client
from tests import tiny_ensemble
from tests.server_process import ServerProcess

LIMITS = ("--max-batch-rows", "2000", "--max-queue-rows", "2000")
ROWS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def server(tiny_directory: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_directory, "--policy", "random", *LIMITS) as server:
        yield server


def test_every_row_draws_its_own_member_uniformly(server: ServerProcess) -> None:
    rows = np.repeat(ROWS[:1], 2000, axis=0)
    with Client(server.grpc, "tiny") as client:
        answer = client.predict(rows)
    distance = np.abs(tiny_ensemble.member_probs(rows) - answer.probs).max(-1)
    assert (distance.min(0) < 1e-6).all()
    drawn = distance.argmin(0)
    counts = np.bincount(drawn, minlength=4)
    assert (counts > 0).all()
    assert chisquare(counts).pvalue > 1e-6
    assert len(set(drawn[:50].tolist())) > 1  # rows of one request differ
    assert (answer.policy, answer.members_run) == ("random", 1)
    assert np.abs(answer.mutual_information).max() < 1e-6


@pytest.mark.parametrize("asked", [{"policy": "mean"}, {"policy": "members", "members": [0]}, {"members": [1]}])
def test_a_client_cannot_switch_it_off(server: ServerProcess, asked: dict[str, Any]) -> None:
    rows = np.repeat(ROWS[:1], 200, axis=0)
    with Client(server.grpc, "tiny") as client:
        answer = client.predict(rows, **asked)
    assert answer.policy == "random"
    assert len(np.unique(answer.probs.round(5), axis=0)) == 4


def test_nothing_says_which_member_answered(server: ServerProcess) -> None:
    with Client(server.grpc, "tiny") as client:
        answer = client.predict(ROWS, member_probs=True)
    assert answer.member_probs is not None
    assert answer.member_probs.shape == (7, 1, 3)  # the answer itself, and no place that would tell
    np.testing.assert_array_equal(answer.member_probs[:, 0], answer.probs)
    with grpc.insecure_channel(server.grpc) as channel:
        request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS.astype("<f4").tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=ROWS.shape)
        response = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert set(response.parameters) == {"policy", "members_run"}
