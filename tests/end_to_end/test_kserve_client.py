"""KServe's clients, in an environment of their own: the package pins much, and none of it is ours to follow."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_ensemble
from tests.server_process import ROOT, ServerProcess

pytestmark = pytest.mark.slow

EXPECTED = tiny_ensemble.pooled_probs(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
UNKNOWN = "unknown model 'other'; this server has 'tiny'"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = tmp_path_factory.mktemp("kserve")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, capture_output=True)
    python = environment / "bin/python"
    command = [str(python), "-m", "pip", "install", "--quiet", "kserve>=0.15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode != 0:
        pytest.skip(f"kserve cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="module")
def found(python: Path, tiny_directory: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("kserve_session.py")
    with ServerProcess(tiny_directory, "--http-port", "0") as server:
        assert server.http is not None
        done = subprocess.run(
            [str(python), str(script), server.grpc, server.http],
            capture_output=True, text=True, check=False, timeout=300, cwd=script.parent,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_health_inference_and_errors(found: dict[str, Any], transport: str) -> None:
    got = found[transport]
    assert (got["live"], got["ready"], got["model ready"]) == (True, True, True)
    assert got["id"] == "r1"
    np.testing.assert_allclose(got["typed"], EXPECTED, atol=1e-6)
    assert UNKNOWN in str(got["error"])


def test_raw_tensors_parameters_and_requested_outputs_over_grpc(found: dict[str, Any]) -> None:
    assert list(found["grpc"]["raw"]) == ["probs"]
    np.testing.assert_allclose(found["grpc"]["raw"]["probs"], EXPECTED, atol=1e-6)
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(found["grpc"]["members"], tiny_ensemble.pooled_probs(rows, [2, 0]), atol=1e-6)


def test_binary_and_nested_tensors_over_http(found: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["http"]["raw"], EXPECTED, atol=1e-6)
    np.testing.assert_allclose(found["http"]["dict"], EXPECTED, atol=1e-6)
    assert "404 Not Found" in found["http"]["error"]


@pytest.mark.parametrize("ours_first", [True, False])
def test_our_generated_code_and_kserves_live_in_one_process(python: Path, ours_first: bool) -> None:
    imports = [
        "import protos.open_inference_grpc_pb2 as ours",
        "import kserve.protocol.grpc.grpc_predict_v2_pb2 as theirs",
    ]
    code = "\n".join(imports if ours_first else imports[::-1])
    code += "\nprint(ours.ModelInferRequest.FromString(theirs.ModelInferRequest(id='7').SerializeToString()).id)"
    done = subprocess.run([str(python), "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "7", done.stderr
