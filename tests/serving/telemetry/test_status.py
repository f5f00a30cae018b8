"""The metrics port as a browser and a scraper see it."""

import re
import shutil
import socket
import struct
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos import manifest_file
from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.telemetry import status
from tests import tiny_ensemble
from tests.server_process import ServerProcess

PAGE = (Path(status.__file__).parent / "status.html").read_text()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def get(url: str, method: str = "GET"):  # type: ignore[no-untyped-def]
    return urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30)


def test_the_page_is_one_file_and_may_load_nothing(tiny_server: ServerProcess) -> None:
    with get(f"http://{tiny_server.metrics}/") as response:
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        rules = dict(rule.split(" ", 1) for rule in response.headers["Content-Security-Policy"].split("; "))
        assert response.read().decode() == PAGE
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert rules["script-src"].startswith("'sha256-")
    assert "unsafe" not in " ".join(rules.values())
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)|\bsrc=|@import|url\(", PAGE)


def test_no_name_can_become_markup() -> None:
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|\bFunction\b", PAGE)


@pytest.mark.parametrize(
    ("path", "method", "code"), [("/nothing", "GET", 404), ("/../etc/passwd", "GET", 404), ("/metrics", "POST", 405)]
)
def test_other_paths_and_methods_are_refused(tiny_server: ServerProcess, path: str, method: str, code: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"http://{tiny_server.metrics}{path}", method)
    assert caught.value.code == code
    caught.value.close()


def test_a_client_that_goes_in_the_middle_of_its_request_leaves_nothing_in_the_log(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory) as server:
        host, port = server.metrics.split(":")
        for _ in range(5):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(b"GET /metr")
                # Closing sends a reset, and not an orderly end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with get(f"http://{server.metrics}/metrics") as response:
            assert b"ensemble_ready 1.0" in response.read()
        code, errors = server.stop()
    assert code == 0
    assert "Traceback" not in errors
    assert "Exception" not in errors


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian package chromium)")
def test_a_browser_shows_every_model_and_hostile_labels_as_text(tmp_path: Path) -> None:
    label = """<img src=x onerror="document.title='taken'">\\"}"""
    tiny_ensemble.write(tmp_path / "tiny")
    manifest = tiny_ensemble.manifest(1)
    manifest.name = "hostile"
    manifest.class_labels[0] = label
    tensors = {"w0": tiny_ensemble.weights(0)}, {"s0": tiny_ensemble.statistics(0)}
    manifest_file.write(tmp_path / "hostile", manifest, tiny_ensemble.graph().SerializeToString(), *tensors)
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype("<f4")
    request = oip.ModelInferRequest(model_name="hostile", raw_input_contents=[rows.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=rows.shape)
    with ServerProcess(tmp_path / "tiny", str(tmp_path / "hostile")) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
        assert CHROMIUM is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
        done = subprocess.run(
            [CHROMIUM, *options, "--virtual-time-budget=3000", "--dump-dom", f"http://{server.metrics}/"],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    assert "<h2>hostile</h2>" in done.stdout
    assert "<h2>tiny</h2>" in done.stdout
    assert ">ready</span>" in done.stdout
    assert "&lt;img src=x onerror=" in done.stdout  # as text, and nowhere as an element
    assert "<img" not in done.stdout
    assert "taken" not in re.findall("<title>(.*?)</title>", done.stdout)[0]
