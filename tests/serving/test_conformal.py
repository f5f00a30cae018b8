"""Output `prediction_set` against its definition."""

from typing import Any

import grpc
import numpy as np
import pytest

from protos.ensemble_pb2 import Conformal as Stored
from protos.ensemble_pb2 import ConformalThreshold
from serving.client import Client
from serving.conformal import Conformal, prediction_set
from serving.errors import InvalidRequest
from serving.policy import Policy
from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


@pytest.mark.parametrize(("policy", "level"), [("mean", 0.9), ("mean", 0.99), ("cascade", 0.9), ("cascade", 0.99)])
def test_sets_hold_the_classes_that_the_policys_threshold_lets_in(
    tiny_server: ServerProcess, policy: str, level: float
) -> None:
    with Client(tiny_server.grpc, "tiny") as client:
        answer = client.predict(ROWS, policy=policy, level=level, also=["prediction_set"])
    probs = tiny_ensemble.pooled_probs(ROWS) if policy == "mean" else tiny_ensemble.cascade_probs(ROWS)[0]
    expected = 1 - probs <= tiny_ensemble.CONFORMAL[policy][level]
    expected[np.arange(60), probs.argmax(1)] = True
    np.testing.assert_array_equal(answer.prediction_set, expected)


def test_sets_of_random_members_are_of_the_member_that_answered(tiny_server: ServerProcess) -> None:
    with Client(tiny_server.grpc, "tiny") as client:
        answer = client.predict(ROWS, policy="random", also=["prediction_set"])
    expected = 1 - answer.probs.astype(np.float64) <= tiny_ensemble.CONFORMAL["random"][0.9]
    expected[np.arange(60), answer.probs.argmax(1)] = True
    np.testing.assert_array_equal(answer.prediction_set, expected)


def test_no_set_is_empty() -> None:
    probs = np.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]])
    assert prediction_set(probs, 0.1).tolist() == [[True, False, False], [False, True, False]]
    assert prediction_set(probs, 1.0).all()


def test_a_level_between_two_gets_the_higher_ones_threshold() -> None:
    thresholds = [ConformalThreshold(level=level, threshold=level / 2) for level in (0.5, 0.8, 0.9)]
    conformal = Conformal([Stored(policy="mean", rows=9, thresholds=thresholds)])
    asked = {0.01: 0.25, 0.5: 0.25, 0.51: 0.4, 0.8: 0.4, 1 - 0.2: 0.4, 0.85: 0.45, 0.9: 0.45}
    assert {level: conformal.threshold(Policy.MEAN, level) for level in asked} == asked
    with pytest.raises(InvalidRequest, match=r"parameter 'level' is 0.91; the manifest goes up to 0.9"):
        conformal.threshold(Policy.MEAN, 0.91)
    with pytest.raises(InvalidRequest, match="with policy 'random'; the manifest has conformal thresholds for 'mean'"):
        conformal.threshold(Policy.RANDOM, 0.5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"level": 1.0}, "parameter 'level' is 1.0; expected a number between 0 and 1, such as 0.9"),
        ({"level": float("nan")}, "parameter 'level' is nan; expected a number between 0 and 1"),
        ({"parameters": {"level": "90%"}}, "parameter 'level' is '90%'; expected a number between 0 and 1"),
        ({"parameters": {"level": 1}}, "parameter 'level' came as int64_param; expected string_param"),
        ({"level": 0.999}, "parameter 'level' is 0.999; the manifest goes up to 0.99"),
        ({"members": [0, 1]}, "'prediction_set' was asked for with policy 'members'; the manifest has conformal"),
    ],
)
def test_what_cannot_be_promised_is_refused(tiny_server: ServerProcess, asked: dict[str, Any], message: str) -> None:
    with Client(tiny_server.grpc, "tiny") as client, pytest.raises(grpc.RpcError) as caught:
        client.predict(ROWS, also=["prediction_set"], **asked)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()


def test_a_level_may_come_as_text(tiny_server: ServerProcess) -> None:
    with Client(tiny_server.grpc, "tiny") as client:
        sets = [
            client.predict(ROWS, also=["prediction_set"], parameters={"level": level}).prediction_set
            for level in ("0.99", ".99", 0.99)
        ]
    assert (sets[0] == sets[1]).all()
    assert (sets[0] == sets[2]).all()
