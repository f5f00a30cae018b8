"""What an answer holds, and what a server keeps to itself."""

from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.client import Client
from serving.outputs import FULL, OUTPUTS, Disclosure
from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
NUMBERS = ["energy", "member_probs", "members_run", "prediction_set"]


def test_every_output_has_the_type_and_shape_that_the_metadata_say(tiny_server: ServerProcess) -> None:
    kinds = {"FP32": np.float32, "INT32": np.int32, "BOOL": np.bool_, "BYTES": np.object_}
    with Client(tiny_server.grpc, "tiny") as client:
        outputs = client.model().outputs
        answer = client.predict(ROWS, also=outputs)
    assert set(outputs) == set(answer.outputs) == set(OUTPUTS)
    for name, tensor in answer.outputs.items():
        assert tensor.dtype == kinds[OUTPUTS[name].datatype]
        expected = [60, *OUTPUTS[name].shape(3)[1:]]
        assert [size if known > 0 else -1 for size, known in zip(tensor.shape, expected, strict=True)] == expected
    assert answer.labels == ["abc"[index] for index in answer.probs.argmax(1)]


@pytest.mark.parametrize("members", [[0], [3, 1], [0, 1, 2, 3]])
def test_the_energy_is_the_mean_of_the_members_own(tiny_server: ServerProcess, members: list[int]) -> None:
    with Client(tiny_server.grpc, "tiny") as client:
        answer = client.predict(ROWS, members=members, also=["energy"])
    own = [-np.log(np.exp(logits).sum(-1)) for logits in tiny_ensemble.member_logits(ROWS)[members]]
    np.testing.assert_allclose(answer.energy, np.mean(own, axis=0), rtol=1e-5, atol=1e-5)


@given(arrays(np.float64, (3, 7), elements=st.floats(0, 1)), st.integers(0, 7))
def test_rounded_probabilities_sum_to_one_stay_near_and_keep_their_order(weights: np.ndarray, decimals: int) -> None:
    probs = weights + 1e-9
    probs /= probs.sum(-1, keepdims=True)
    told = Disclosure(decimals).probs(probs)
    units = told * 10**decimals
    np.testing.assert_allclose(units, units.round(), atol=1e-6)
    np.testing.assert_allclose(told.sum(-1), 1.0, atol=1e-12)
    assert (np.abs(told - probs) < 10.0**-decimals + 1e-12).all()
    greater = probs[:, :, None] > probs[:, None, :] + 1e-9
    assert (told[:, :, None] - told[:, None, :] >= -1e-12)[greater].all()


def test_a_member_that_did_not_answer_stays_without_probabilities() -> None:
    assert not Disclosure(2).probs(np.zeros((2, 3))).any()


def test_nothing_is_rounded_unless_a_server_says_so() -> None:
    probs = np.array([[1 / 3, 2 / 3]])
    assert FULL.probs(probs) is probs


def test_a_server_that_rounds_tells_nothing_finer(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory, "--round-probs", "1") as server, Client(server.grpc, "tiny") as client:
        answer = client.predict(ROWS, also=NUMBERS)
        wide = client.predict(ROWS, also=["prediction_set"], level=0.99).prediction_set
    for name in ("probs", "entropy", "mutual_information", "energy", "member_probs"):
        tenths = answer.outputs[name].astype(np.float64) * 10
        np.testing.assert_allclose(tenths, tenths.round(), atol=1e-5)
    np.testing.assert_allclose(answer.probs.sum(1), 1.0, atol=1e-6)
    assert answer.member_probs is not None
    np.testing.assert_allclose(answer.member_probs.sum(2), 1.0, atol=1e-6)
    # Sets say no more than the rounded probabilities, and leave nothing out.
    exact = tiny_ensemble.pooled_probs(ROWS)
    for sets, level in ((answer.prediction_set, 0.9), (wide, 0.99)):
        threshold = tiny_ensemble.CONFORMAL["mean"][level]
        np.testing.assert_array_equal(sets, 1 - answer.probs.astype(np.float64) <= threshold + 0.1 + 1e-6)
        assert sets[1 - exact <= threshold].all()


@pytest.fixture(scope="module")
def labels_only(tiny_directory: Path):  # type: ignore[no-untyped-def]
    with ServerProcess(tiny_directory, "--labels-only") as server:
        yield server


def test_a_server_of_labels_gives_labels(labels_only: ServerProcess) -> None:
    with Client(labels_only.grpc, "tiny") as client:
        assert client.model().outputs == ("label",)
        answer = client.predict(ROWS)
        cascaded = client.predict(ROWS, policy="cascade")
    assert answer.labels == ["abc"[index] for index in tiny_ensemble.pooled_probs(ROWS).argmax(1)]
    assert set(answer.outputs) == set(cascaded.outputs) == {"label"}
    assert cascaded.members_run == 0  # how many members a row took says how sure they were


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "label"])
def test_a_server_of_labels_refuses_everything_else(labels_only: ServerProcess, name: str) -> None:
    with Client(labels_only.grpc, "tiny") as client, pytest.raises(grpc.RpcError) as caught:
        client.predict(ROWS, also=[name])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == f"output '{name}' was asked for; this server gives label"
