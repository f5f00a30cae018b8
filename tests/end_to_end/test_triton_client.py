"""tritonclient, in its own process, gets everything that it expects of a server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def found(tiny_server: ServerProcess) -> dict[str, Any]:
    script = Path(__file__).with_name("triton_session.py")
    done = subprocess.run(
        [sys.executable, str(script), tiny_server.grpc, "tiny"],
        capture_output=True, text=True, check=False, timeout=120, cwd=script.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_live_ready_and_metadata(found: dict[str, Any]) -> None:
    assert found["live"]
    assert found["ready"]
    assert found["model_ready"]
    assert found["server"]["name"] == "thalweg"
    assert found["metadata"]["inputs"] == [{"name": "input", "datatype": "FP32", "shape": ["-1", "4"]}]
    names = [output["name"] for output in found["metadata"]["outputs"]]
    assert names == ["probs", "entropy", "mutual_information", "member_probs"]


def test_predictions_by_raw_and_by_typed_contents(found: dict[str, Any]) -> None:
    expected = tiny_ensemble.pooled_probs(ROWS)
    np.testing.assert_allclose(found["raw"], expected, atol=1e-6)
    np.testing.assert_allclose(found["typed"], expected, atol=1e-6)
    assert found["id"] == "r1"


def test_requested_outputs_and_parameters(found: dict[str, Any]) -> None:
    assert found["outputs"] == ["member_probs", "entropy"]
    members = tiny_ensemble.member_probs(ROWS)[[2, 0]].swapaxes(0, 1)
    np.testing.assert_allclose(found["member_probs"], members, atol=1e-6)
    probs = tiny_ensemble.pooled_probs(ROWS, [2, 0])
    np.testing.assert_allclose(found["entropy"], -(probs * np.log(probs)).sum(-1), atol=1e-6)


def test_asyncio(found: dict[str, Any]) -> None:
    np.testing.assert_allclose(np.concatenate(found["asyncio"]), tiny_ensemble.pooled_probs(ROWS), atol=1e-6)


def test_errors_carry_code_and_message(found: dict[str, Any]) -> None:
    assert found["error"] == ["StatusCode.NOT_FOUND", "unknown model 'other'; this server has 'tiny'"]
