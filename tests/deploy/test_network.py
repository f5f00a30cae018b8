"""Replicas behind one name, as a headless Service has it: one is added, and one's link is cut.

Podman's DNS answers with the address of each container of that alias. The client is a container as well, of the same
image.
"""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.client.clients import KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS
from tests import tiny_ensemble
from tests.deploy.containers import MISSING, RESTRICTED, Container, needs_containers
from tests.deploy.replicas import NETWORK, create_network

AARDVARK = Path("/usr/lib/podman/aardvark-dns")
pytestmark = [
    needs_containers,
    pytest.mark.skipif(shutil.which("nsenter") is None, reason="nsenter is not installed (Debian package util-linux)"),
    pytest.mark.skipif(
        not MISSING and not AARDVARK.exists(), reason="aardvark-dns is not installed (Debian package aardvark-dns)"
    ),
    pytest.mark.slow,
]

ASK = """
import json, time
import numpy as np
from serving.client import Client

rows = np.zeros((1, 4), np.float32)
with Client("dns:///thalweg:8001", "tiny", timeout_s=60) as client:
    while True:
        started = time.time()
        try:
            client.predict(rows)
            error = ""
        except Exception as caught:
            error = str(caught)
        print(json.dumps([started, time.time() - started, error]), flush=True)
        time.sleep(0.01)
"""


class Site:
    def __init__(self, image: str, models: Path, stack: ExitStack) -> None:
        self._image, self._models, self._stack = image, models, stack
        create_network()
        self.replicas = [self.add() for _ in range(2)]
        place = (*RESTRICTED, f"--network={NETWORK}", "--entrypoint=python3")
        self.client = stack.enter_context(Container(image, "-c", ASK, options=place))

    def add(self) -> Container:
        """With connections that end after some four seconds, which is when a client looks for replicas again."""
        place = (f"--network={NETWORK}", "--network-alias=thalweg", f"--volume={self._models}:/mnt/models:ro")
        settings = ("--max-connection-age-seconds", 4)
        container = Container(self._image, *settings, options=(*RESTRICTED, *place))
        return self._stack.enter_context(container).wait_until_ready()

    def calls(self) -> list[tuple[float, float, str]]:
        """Unix time, seconds and error of each."""
        return [tuple(json.loads(line)) for line in self.client.logs().splitlines() if line.startswith("[")]


def rows(container: Container) -> float:
    with urllib.request.urlopen(f"http://{container.address}:8002/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("ensemble_rows_total"))


@pytest.fixture
def site(serving_image: str, tmp_path: Path) -> Iterator[Site]:
    tiny_ensemble.write(tmp_path / "tiny")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    with ExitStack() as stack:
        yield Site(serving_image, tmp_path, stack)


def wait_for_calls(site: Site, count: int) -> None:
    goal, deadline = len(site.calls()) + count, time.monotonic() + 60
    while len(site.calls()) < goal:
        assert time.monotonic() < deadline, site.client.logs()[-2000:]


def test_a_new_replica_has_its_share_within_five_seconds(site: Site) -> None:
    wait_for_calls(site, 100)
    new = site.add()
    ready = time.monotonic()
    while rows(new) == 0:
        assert time.monotonic() - ready < 5
    print(f"first row {time.monotonic() - ready:.1f} s after it was ready")
    before = [rows(replica) for replica in (*site.replicas, new)]
    wait_for_calls(site, 300)
    gained = [rows(replica) - old for replica, old in zip((*site.replicas, new), before, strict=True)]
    assert gained[2] > sum(gained) / 6  # half of a third: connections come and go
    assert [error for _, _, error in site.calls() if error] == []


def test_a_cut_link_stalls_no_call_longer_than_the_clients_keepalive(site: Site) -> None:
    wait_for_calls(site, 100)
    cut = time.time()
    network = f"--net=/proc/{site.replicas[0].pid}/ns/net"
    subprocess.run(["nsenter", network, "ip", "link", "set", "eth0", "down"], check=True)
    wait_for_calls(site, 300)
    calls = [(seconds, error) for started, seconds, error in site.calls() if started + seconds >= cut]
    print(f"longest call {max(seconds for seconds, _ in calls):.1f} s after the cut")
    assert [error for _, error in calls if error] == []
    assert max(seconds for seconds, _ in calls) < KEEPALIVE_SECONDS + KEEPALIVE_TIMEOUT_SECONDS
