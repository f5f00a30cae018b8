"""Every panel shows something under load, and every alert fires in a situation made for it and clears after it."""

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from serving.client import Client, Tls
from tests.deploy.dashboard_picture import draw
from tests.deploy.live import Prometheus, prometheus, rules
from tests.deploy.render import DEPLOY
from tests.load import Load
from tests.proxies import free_port
from tests.server_process import ServerProcess
from tests.serving.ports.test_transport import Authority
from trainer.pipeline import Outcome

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed (Debian package prometheus)"
    ),
]

FAMILIAR = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]  # [1797, 1, 8, 8], as trained on
NOISE = np.random.default_rng(0).integers(0, 256, (512, 1, 8, 8), np.uint8)
ROWS, TOKEN = 16, "a-token"
NO_SERIES_ON_A_CPU = {"GPU memory"}
# A GPU that is full, and a fault of ours: promtool's tests of the rules have them (tests/deploy/alerts.yaml).
NOT_PROVOKED = {"ThalwegDeviceMemory", "ThalwegErrors"}
PROVOKED: set[str] = set()


class Site:
    """Replica 0 is plain, 1 wants a token, 2 speaks TLS; each has a repository of its own, and its load."""

    def __init__(self, ensemble: Path, folder: Path) -> None:
        self.folder, self.ensemble = folder, ensemble
        self.authority = Authority("authority", folder)
        self.certificate, self.key = self.authority.issue("server", days=60)
        (folder / "tokens").write_text(TOKEN)
        self.rows: NDArray[np.uint8] = FAMILIAR
        self.ports = [(free_port(), free_port()) for _ in range(3)]
        self.extra = [
            ("--drain-seconds", "60"),
            ("--tokens", str(folder / "tokens"), "--near-duplicates"),
            ("--tls-certificate", str(self.certificate), "--tls-key", str(self.key)),
        ]
        for index in range(3):
            shutil.copytree(ensemble, self.repository(index) / "digits")
        self.servers = [self.start(index) for index in range(3)]

    def repository(self, index: int) -> Path:
        return self.folder / f"models-{index}"

    def start(self, index: int) -> ServerProcess:
        grpc_port, metrics_port = self.ports[index]
        options = ("--grpc-port", grpc_port, "--metrics-port", metrics_port, "--watch", "--watch-seconds", 0.2)
        queue = ("--max-batch-rows", 64, "--max-queue-rows", 64)
        everything = map(str, (*options, *queue, *self.extra[index]))
        return ServerProcess(self.repository(index), *everything, "--threads", "1")

    def restart(self, index: int) -> None:
        self.servers[index].process.kill()
        self.servers[index].process.communicate()
        self.servers[index] = self.start(index)

    def client(self, index: int, **options: object) -> Client:
        target = f"127.0.0.1:{self.ports[index][0]}"
        tls = Tls(self.authority.path) if index == 2 else None
        return Client(target, "digits", tls=tls, token=TOKEN if index == 1 else None, **options)  # type: ignore[arg-type]

    def ask(self, client: Client, rows: int = ROWS) -> None:
        start = np.random.randint(len(self.rows) - rows)  # threads share no generator
        with contextlib.suppress(grpc.RpcError):
            client.predict(self.rows[start : start + rows])
        time.sleep(0.02)  # a load that leaves room for what is provoked


@pytest.fixture(scope="module")
def site(small_run: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(small_run.ensembles["curve"], tmp_path_factory.mktemp("site"))
    try:
        with contextlib.ExitStack() as stack:
            for index in range(3):
                client = stack.enter_context(site.client(index))
                stack.enter_context(Load(lambda client=client: site.ask(client), threads=1))  # type: ignore[misc]
            yield site
    finally:
        for server in site.servers:
            server.process.kill()
            server.process.communicate()


@pytest.fixture(scope="module")
def watcher(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    targets = [f"127.0.0.1:{metrics}" for _, metrics in site.ports]
    with prometheus(tmp_path_factory.mktemp("prometheus"), targets) as watcher:
        yield watcher


@pytest.fixture(scope="module", autouse=True)
def started(watcher: Prometheus) -> float:
    """Unix time; the rules have seen a day and a week, as they are here."""
    start = time.time()
    query = "avg_over_time(thalweg:entropy_nats:mean1h[20s] offset 20s)"
    watcher.wait_until(lambda: bool(watcher.ask("query", query=query)["result"]), "no day has passed")
    return start


@contextlib.contextmanager
def fires(watcher: Prometheus, *alerts: str) -> Iterator[None]:
    """In the block's situation; they are silent before it, and again after it."""
    PROVOKED.update(alerts)
    for alert in alerts:
        watcher.wait_until(lambda alert=alert: alert not in watcher.firing(), f"{alert} fires unprovoked")  # type: ignore[misc]
    yield
    for alert in alerts:
        watcher.wait_until(lambda alert=alert: alert not in watcher.firing(), f"{alert} does not clear")  # type: ignore[misc]


def wait_for(watcher: Prometheus, *alerts: str) -> None:
    for alert in alerts:
        watcher.wait_until(lambda alert=alert: alert in watcher.firing(), f"{alert} does not fire")  # type: ignore[misc]


def test_every_panel_has_data_under_load_and_the_inputs_drift_is_told(site: Site, watcher: Prometheus) -> None:
    drift = ("ThalwegUnsure", "ThalwegMembersDisagree", "ThalwegClassMix")
    with fires(watcher, *drift):
        site.rows = NOISE
        wait_for(watcher, *drift)
        panels = json.loads((DEPLOY / "dashboard.json").read_text())["panels"]
        expressions = [
            (panel["title"], target["expr"])
            for panel in panels
            if panel["title"] not in NO_SERIES_ON_A_CPU
            for target in panel.get("targets", ())
        ]
        assert [(title, text) for title, text in expressions if not watcher.series(text)] == []
        site.rows = FAMILIAR


def test_more_than_fits_is_told_as_overload(site: Site, watcher: Prometheus) -> None:
    with (
        fires(watcher, "ThalwegOverloaded"),
        site.client(0) as client,
        Load(lambda: site.ask(client, 64), threads=24),
    ):
        wait_for(watcher, "ThalwegOverloaded")


def test_a_refused_reload_is_told(site: Site, watcher: Prometheus) -> None:
    with fires(watcher, "ThalwegLoadRefused"):
        manifest = site.repository(0) / "digits" / "manifest.json"
        good = manifest.read_bytes()
        manifest.write_bytes(good.replace(b'"sha256', b'"sha257', 1))
        wait_for(watcher, "ThalwegLoadRefused")
        manifest.write_bytes(good)


def test_a_certificate_that_ends_soon_is_told(site: Site, watcher: Prometheus) -> None:
    with fires(watcher, "ThalwegCertificateExpires"):
        site.authority.issue("server", days=2)
        wait_for(watcher, "ThalwegCertificateExpires")
        site.authority.issue("server", days=60)


def test_unknown_tokens_are_told(site: Site, watcher: Prometheus) -> None:
    with (
        fires(watcher, "ThalwegUnauthenticated"),
        Client(f"127.0.0.1:{site.ports[1][0]}", "digits") as client,
        Load(lambda: site.ask(client), threads=1),
    ):
        wait_for(watcher, "ThalwegUnauthenticated")


def test_a_version_that_one_replica_alone_serves_is_told(site: Site, watcher: Prometheus) -> None:
    from tests import tiny_ensemble

    with fires(watcher, "ThalwegReplicasDiffer"):
        tiny_ensemble.write(site.repository(0) / "tiny")
        wait_for(watcher, "ThalwegReplicasDiffer")
        shutil.rmtree(site.repository(0) / "tiny")


def test_slow_answers_are_told(site: Site, watcher: Prometheus) -> None:
    """Replicas that get no CPU for a second and a half, again and again."""
    with fires(watcher, "ThalwegSlow"):
        end = threading.Event()

        def starve() -> None:
            while not end.is_set():
                for number, seconds in ((signal.SIGSTOP, 1.5), (signal.SIGCONT, 0.3)):
                    for server in site.servers:
                        server.process.send_signal(number)
                    time.sleep(seconds)

        thread = threading.Thread(target=starve)
        thread.start()
        try:
            wait_for(watcher, "ThalwegSlow")
        finally:
            end.set()
            thread.join()


def test_a_killed_replica_and_its_restarts_are_told(site: Site, watcher: Prometheus) -> None:
    with fires(watcher, "ThalwegReplicaDown", "ThalwegRestarts"):
        site.servers[0].process.kill()
        wait_for(watcher, "ThalwegReplicaDown")
        for _ in range(4):
            site.restart(0)
            watcher.wait_until(
                lambda: len(watcher.ask("query", query="up == 1")["result"]) == 3, "a replica does not come back"
            )
        wait_for(watcher, "ThalwegRestarts")


def test_a_replica_that_runs_and_is_not_ready_is_told(site: Site, watcher: Prometheus) -> None:
    """It drains for longer than a rollout should take."""
    with fires(watcher, "ThalwegNotReady"):
        site.servers[0].process.terminate()
        wait_for(watcher, "ThalwegNotReady")
        site.restart(0)


def test_no_replica_at_all_is_told(site: Site, watcher: Prometheus) -> None:
    with fires(watcher, "ThalwegDown"):
        for server in site.servers:
            server.process.kill()
        wait_for(watcher, "ThalwegDown")
        for index in range(3):
            site.restart(index)


def test_the_dashboard_can_be_drawn(watcher: Prometheus, started: float, tmp_path: Path) -> None:
    """All that the tests above have done: docs/images/dashboard.png is such a picture."""
    everyone = "count(ensemble_ready == 1) == 3"
    certificate = "ensemble_certificate_expiry_timestamp_seconds"
    watcher.wait_until(lambda: bool(watcher.series(everyone) and watcher.series(certificate)), "a replica is missing")
    assert draw(watcher, started, time.time(), tmp_path / "dashboard.png") > 50


def test_no_alert_is_forgotten() -> None:
    alerts = {rule["alert"] for group in rules()["groups"] for rule in group["rules"] if "alert" in rule}
    assert alerts == PROVOKED | NOT_PROVOKED
