"""The server's image as production runs it: another user than root, nothing to write to, no capabilities, 512 MB."""

import itertools
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.client import Client
from tests.deploy import containers
from tests.deploy.containers import BASE, RESTRICTED, Container, needs_containers, podman
from tests.load import Load
from trainer.pipeline import Outcome

pytestmark = [needs_containers, pytest.mark.slow]

ROWS = np.random.default_rng(0).integers(0, 17, (5, 1, 8, 8), np.uint8)
SHELLS = tuple(f"--volume=/dev/null:/usr/bin/{shell}:ro" for shell in ("sh", "dash", "bash"))  # none of these can run

TRITON = """
import json, sys
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready()
rows = np.array(json.loads(sys.stdin.read()), np.uint8)
tensor = triton.InferInput("input", list(rows.shape), "UINT8")
tensor.set_data_from_numpy(rows)
print(json.dumps(client.infer(sys.argv[2], [tensor]).as_numpy("probs").tolist()))
"""


@pytest.fixture(scope="module")
def demo(small_run: Outcome) -> Path:
    return small_run.ensembles["curve"]


@pytest.fixture(scope="module")
def server(serving_image: str, demo: Path) -> Iterator[Container]:
    options = (*RESTRICTED, *SHELLS, f"--volume={demo}:/mnt/models:ro")
    with Container(serving_image, "--drain-seconds", "1", options=options) as container:
        yield container.wait_until_ready()


def test_the_image_is_small_and_says_what_it_is(serving_image: str) -> None:
    image, base = (json.loads(podman("image", "inspect", name))[0] for name in (serving_image, BASE))
    assert image["Size"] - base["Size"] <= 350e6
    assert image["User"] == "10001:10001"
    assert image["Labels"]["org.opencontainers.image.version"] == version("thalweg")
    assert image["Healthcheck"]["Test"] == ["CMD", "thalweg-health"]
    assert set(image["Config"]["ExposedPorts"]) == {"8001/tcp", "8002/tcp"}


def test_it_holds_the_server_and_nothing_to_train_or_install_with(serving_image: str) -> None:
    code = "import importlib.util as u; print([n for n in ('serving', 'torch', 'trainer', 'pip') if u.find_spec(n)])"
    assert podman("run", "--rm", "--entrypoint=python3", serving_image, "-c", code).strip() == "['serving']"


def test_it_runs_without_rights(server: Container) -> None:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if ":" in line
    )
    assert status["Uid"].split() == ["10001"] * 4
    assert {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
    assert status["NoNewPrivs"].strip() == "1"
    write = "import sys; open(sys.argv[1], 'w')"
    for path in ("/app/x", "/opt/thalweg/x", "/x", "/mnt/models/x"):
        assert "Read-only file system" in podman("exec", server.id, "python3", "-c", write, path, check=False)
    assert "telemetry" not in server.logs()  # ONNX Runtime's own


def test_tritonclient_gets_the_answers_that_our_client_gets(server: Container) -> None:
    target = f"{server.address}:8001"
    done = subprocess.run(
        [sys.executable, "-c", TRITON, target, "digits"], input=json.dumps(ROWS.tolist()),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Client(target, "digits") as client:
        np.testing.assert_allclose(client.predict(ROWS).probs, json.loads(done.stdout), atol=1e-6)


def test_it_is_scraped(server: Container) -> None:
    with urllib.request.urlopen(f"http://{server.address}:8002/metrics", timeout=30) as response:
        families = {family.name: family for family in text_string_to_metric_families(response.read().decode())}
    assert families["ensemble_ready"].samples[0].value == 1
    assert families["ensemble_build_info"].samples[0].labels["version"] == version("thalweg")


def test_sigterm_under_load_loses_nothing_and_ends_with_0(serving_image: str, demo: Path) -> None:
    options = (*RESTRICTED, *SHELLS, f"--volume={demo}:/mnt/models:ro")
    with (
        Container(serving_image, "--drain-seconds", "1", options=options) as one,
        Container(serving_image, "--drain-seconds", "1", options=options) as two,
    ):
        target = "ipv4:" + ",".join(f"{container.wait_until_ready().address}:8001" for container in (one, two))
        with Client(target, "digits") as client:
            expected = client.predict(ROWS).probs
            rows = itertools.cycle(range(len(ROWS)))

            def ask() -> None:
                row = next(rows)
                np.testing.assert_allclose(client.predict(ROWS[row : row + 1]).probs[0], expected[row], atol=1e-6)

            with Load(ask) as load:
                load.wait_for(200)
                assert one.stop() == 0
                load.wait_for(200)
        assert load.failures == []
        assert "Traceback" not in one.logs()


def test_the_image_for_gpus_serves_on_the_cpu_where_there_is_none_and_says_why(demo: Path) -> None:
    """What it does on a GPU, no machine of ours has shown."""
    image = containers.build("thalweg-serving:cuda", "Dockerfile.serving", "cuda")
    options = (*RESTRICTED, *SHELLS, f"--volume={demo}:/mnt/models:ro")
    no_driver = "no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    with Container(image, options=options) as container:
        container.wait_until_ready()
        assert no_driver in container.logs()
        with Client(f"{container.address}:8001", "digits") as client:
            assert client.predict(ROWS).members_run == 5
    with Container(image, "--device", "cuda", options=options) as container:
        assert container.wait() == 2
        assert f"--device cuda: {no_driver}" in container.logs()
    code = "import onnxruntime as o; print(o.get_available_providers()); o.preload_dlls()"
    said = podman("run", "--rm", "--entrypoint=python3", image, "-c", code, check=False)
    assert "CUDAExecutionProvider" in said
    assert "Failed to load" not in said  # NVIDIA's libraries are there, and fit each other


def test_sigterm_before_it_is_ready_ends_it_at_once(serving_image: str, demo: Path) -> None:
    """As process 1 it would ignore the signal, and be waited for."""
    with Container(serving_image, options=(*RESTRICTED, f"--volume={demo}:/mnt/models:ro")) as container:
        deadline = time.monotonic() + 10
        while not catches_sigterm(container.pid):
            assert time.monotonic() < deadline
        started = time.monotonic()
        code = container.stop()
        assert time.monotonic() - started < 10
        assert (code, "ready" in container.logs()) in ((143, False), (0, False), (0, True))


def catches_sigterm(pid: int) -> bool:
    """Python does; what runs before it in the same process catches everything."""
    if b"python" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        return False
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def test_its_health_check_passes(server: Container) -> None:
    podman("healthcheck", "run", server.id)


def test_its_health_check_says_what_is_wrong(serving_image: str) -> None:
    text = podman("run", "--rm", "--entrypoint=thalweg-health", serving_image, "127.0.0.1:9", check=False)
    assert "thalweg-health: 127.0.0.1:9 answers UNAVAILABLE" in text
