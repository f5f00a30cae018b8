"""tritonclient, in its own process, gets everything that its examples ask of a server: over gRPC and over HTTP."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
PIXELS = np.random.default_rng(0).integers(0, 4, (3, 1, 2, 2), np.uint8)
EXPECTED = tiny_ensemble.pooled_probs(ROWS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    tiny_ensemble.write(repository / "tiny")
    tiny_ensemble.write(repository / "pictures", datatype="UINT8", name="pictures", row_shape=(1, 2, 2))
    with ServerProcess(repository, "--allow-control", "--http-port", "0") as server:
        yield server


def run(script: str, *arguments: str) -> dict[str, Any]:
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True, text=True, check=False, timeout=240, cwd=path.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def found(server: ServerProcess) -> dict[str, Any]:
    return run("triton_session.py", server.grpc)


@pytest.fixture(scope="module")
def found_over_http(server: ServerProcess) -> dict[str, Any]:
    assert server.http is not None
    return run("triton_http_session.py", server.http)


def test_live_ready_metadata_and_configuration(found: dict[str, Any]) -> None:
    assert found["live"]
    assert found["ready"]
    assert found["model_ready"]
    assert found["channel arguments"]
    assert found["server"]["name"] == "thalweg"
    assert {"classification", "model_configuration", "statistics"} <= set(found["server"]["extensions"])
    assert found["metadata"]["inputs"] == [{"name": "input", "datatype": "FP32", "shape": ["-1", "4"]}]
    names = [output["name"] for output in found["metadata"]["outputs"]]
    assert names[:4] == ["probs", "entropy", "mutual_information", "member_probs"]
    assert (found["config"]["max_batch_size"], found["config"]["input"][0]["dims"]) == (64, ["4"])
    assert [output["name"] for output in found["config"]["output"]] == names


@pytest.mark.parametrize(
    "form",
    ["raw", "typed", "gzip", "deflate", "priority and timeout", "sequence", "callback", "asyncio", "asyncio stream"],
)
def test_every_form_of_a_request_gets_the_same_answer(found: dict[str, Any], form: str) -> None:
    np.testing.assert_allclose(found[form], EXPECTED, atol=1e-6)
    assert found["id"] == "r1"


@pytest.mark.parametrize("form", ["raw integers", "typed integers", "raw strings", "typed strings", "loaded"])
def test_pixels_and_encoded_pictures_get_the_same_answer(found: dict[str, Any], form: str) -> None:
    np.testing.assert_allclose(found[form], tiny_ensemble.pooled_probs(PIXELS), atol=1e-6)


def test_objects_may_be_used_again(found: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["objects used again"], [EXPECTED, EXPECTED], atol=1e-6)


def test_requested_outputs_and_parameters(found: dict[str, Any]) -> None:
    assert found["outputs"] == ["member_probs", "entropy"]
    members = tiny_ensemble.member_probs(ROWS)[[2, 0]].swapaxes(0, 1)
    np.testing.assert_allclose(found["member_probs"], members, atol=1e-6)
    probs = tiny_ensemble.pooled_probs(ROWS, [2, 0])
    np.testing.assert_allclose(found["entropy"], -(probs * np.log(probs)).sum(-1), atol=1e-6)


def check_classes(classes: list[list[str]]) -> None:
    for probs, row in zip(EXPECTED, classes, strict=True):
        best = np.argsort(-probs)[:2]
        assert [cell.split(":")[1:] for cell in row] == [[str(index), "abc"[index]] for index in best]
        assert [float(cell.split(":")[0]) for cell in row] == pytest.approx(list(probs[best]), abs=2e-6)


def test_classification(found: dict[str, Any]) -> None:
    check_classes(found["classes"])


def test_a_stream_answers_in_order_and_goes_on_after_an_error(found: dict[str, Any]) -> None:
    numbers = [str(i) for i in range(10)]
    numbers[4] = "unknown model 'other'; this server has 'pictures', 'tiny'"
    assert found["stream"] == numbers
    np.testing.assert_allclose(found["stream probs"], EXPECTED[[0, 1, 2, 3, 0, 1, 2, 3, 4]], atol=1e-6)


def test_statistics(found: dict[str, Any]) -> None:
    (stats,) = found["statistics"]
    assert found["every model"] == 2
    assert int(stats["inference_stats"]["success"]["count"]) >= 19
    assert int(stats["inference_count"]) > int(stats["execution_count"]) > 0
    assert sum(int(batch["compute_infer"]["count"]) for batch in stats["batch_stats"]) == int(stats["execution_count"])


def test_model_control(found: dict[str, Any]) -> None:
    both = {"pictures": "READY", "tiny": "READY"}
    assert found["states"] == [both, both | {"pictures": "UNAVAILABLE"}, both]
    assert found["unloaded"] == "StatusCode.UNAVAILABLE"
    assert found["unknown load"][0] == "StatusCode.NOT_FOUND"


def test_errors_carry_code_and_message(found: dict[str, Any]) -> None:
    message = "unknown model 'other'; this server has 'pictures', 'tiny'"
    assert found["unknown infer"] == ["StatusCode.NOT_FOUND", message]
    assert found["unknown"][0] == "StatusCode.NOT_FOUND"


def test_http_health_metadata_configuration_statistics_and_control(found_over_http: dict[str, Any]) -> None:
    found = found_over_http
    assert (found["live"], found["ready"], found["model_ready"], found["not ready"]) == (True, True, True, False)
    assert found["server"]["name"] == "thalweg"
    assert found["metadata"]["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    assert (found["config"]["max_batch_size"], found["config"]["input"][0]["dims"]) == (64, [4])
    assert found["statistics"][0]["inference_count"] > 0
    assert not found["unloaded"]
    assert {model["name"]: model["state"] for model in found["index"]} == {"pictures": "READY", "tiny": "READY"}
    assert found["error"] == ["404", "unknown model 'other'; this server has 'pictures', 'tiny'"]


@pytest.mark.parametrize("form", ["binary", "json", "gzip", "deflate", "asyncio"])
def test_http_requests_get_the_same_answer(found_over_http: dict[str, Any], form: str) -> None:
    np.testing.assert_allclose(found_over_http[form], EXPECTED, atol=1e-6)
    np.testing.assert_allclose(found_over_http["async"], [EXPECTED] * 4, atol=1e-6)
    assert found_over_http["id"] == "r1"


def test_http_classification(found_over_http: dict[str, Any]) -> None:
    check_classes(found_over_http["classes"])
