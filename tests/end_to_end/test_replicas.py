"""SIGTERM under load: two replicas and our client, behind nginx, behind HAProxy; three replicas restarted in turn.

The proxies' settings are those that docs/operations.md recommends; their clients make one attempt.
"""

import contextlib
import itertools
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.client import Client
from tests import tiny_ensemble
from tests.load import Load
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(8, 4)).astype("<f4")
PROBS = tiny_ensemble.pooled_probs(ROWS)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def asking(client: Client) -> Callable[[], None]:
    rows = itertools.cycle(range(len(ROWS)))

    def ask() -> None:
        row = next(rows)
        np.testing.assert_allclose(client.predict(ROWS[row : row + 1]).probs, PROBS[row : row + 1], atol=1e-6)

    return ask


def asking_once(channel: grpc.Channel) -> Callable[[], None]:
    """A plain client: no retries, no round robin, no health checks."""
    rows, stub = itertools.cycle(range(len(ROWS))), GRPCInferenceServiceStub(channel)

    def ask() -> None:
        row = next(rows)
        request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS[row].tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
        probs = np.frombuffer(stub.ModelInfer(request, timeout=30).raw_output_contents[0], "<f4")
        np.testing.assert_allclose(probs, PROBS[row], atol=1e-6)

    return ask


def rows_answered(server: ServerProcess) -> bool:
    """Whether the server has a share of the load."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as response:
        lines = response.read().decode().splitlines()
    return any(line.startswith("ensemble_rows_total") and float(line.split()[-1]) > 0 for line in lines)


def stop_one_under(load: Load, servers: list[ServerProcess]) -> None:
    load.wait_for(200)
    assert all(rows_answered(server) for server in servers)
    code, errors = servers[0].stop()
    load.wait_for(200)
    assert load.failures == []
    assert code == 0, errors
    assert "Traceback" not in errors


def test_our_client_does_not_notice_that_one_of_two_replicas_stops(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory) as one, ServerProcess(tiny_directory) as two:
        with Client(f"ipv4:{one.grpc},{two.grpc}", "tiny") as client, Load(asking(client)) as load:
            stop_one_under(load, [one, two])
        assert load.failures == []


@pytest.mark.slow
def test_our_client_does_not_notice_a_rolling_restart_of_three_replicas(tiny_directory: Path) -> None:
    ports = [str(free_port()) for _ in range(3)]
    servers = [ServerProcess(tiny_directory, "--grpc-port", port) for port in ports]
    target = "ipv4:" + ",".join(server.grpc for server in servers)
    try:
        with Client(target, "tiny") as client, Load(asking(client)) as load:
            for i, port in enumerate(ports):
                load.wait_for(100)
                code, errors = servers[i].stop()
                assert code == 0, errors
                servers[i] = ServerProcess(tiny_directory, "--grpc-port", port)
                deadline = time.monotonic() + 60
                while not rows_answered(servers[i]):  # the client has found it again
                    load.wait_for(10)
                    assert time.monotonic() < deadline
        assert load.failures == []
    finally:
        for server in servers:
            server.__exit__(None, None, None)


def test_a_client_that_never_retries_does_not_notice_where_connections_age(tiny_directory: Path) -> None:
    age = ("--max-connection-age-seconds", "1")
    options = [("grpc.enable_retries", 0), ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')]
    with ServerProcess(tiny_directory, *age) as one, ServerProcess(tiny_directory, *age) as two:
        with (
            grpc.insecure_channel(f"ipv4:{one.grpc},{two.grpc}", options) as channel,
            Load(asking_once(channel)) as load,
        ):
            stop_one_under(load, [one, two])
        assert load.failures == []


NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream thalweg {{
        server {one};
        server {two};
    }}
    server {{
        listen 127.0.0.1:{port} http2;
        keepalive_requests 1000000;
        location / {{
            grpc_pass grpc://thalweg;
            grpc_next_upstream error timeout non_idempotent;
        }}
    }}
}}
"""

HAPROXY = """
global
    log stderr local0 warning
defaults
    mode http
    log global
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout check 10s
    option redispatch 1
    retry-on conn-failure empty-response
frontend grpc
    bind 127.0.0.1:{port} proto h2
    default_backend thalweg
backend thalweg
    balance roundrobin
    option httpchk
    http-check connect proto h1
    http-check send meth GET uri /ready
    http-check expect status 200
    default-server proto h2 check inter 100ms fall 2 rise 1
    server one {one} port {one_metrics}
    server two {two} port {two_metrics}
"""


@contextlib.contextmanager
def proxy(command: list[object], port: int, log: Path) -> Iterator[str]:
    with log.open("wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
                break
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (Debian package nginx-light)")
def test_clients_behind_nginx_do_not_notice(tiny_directory: Path, tmp_path: Path) -> None:
    port = free_port()
    with ServerProcess(tiny_directory) as one, ServerProcess(tiny_directory) as two:
        (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, one=one.grpc, two=two.grpc, port=port))
        command = ["nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"]
        with (
            proxy(command, port, tmp_path / "log") as target,
            grpc.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel,
            Load(asking_once(channel)) as load,
        ):
            stop_one_under(load, [one, two])
        assert load.failures == []


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed (Debian package haproxy)")
def test_clients_behind_haproxy_do_not_notice(tiny_directory: Path, tmp_path: Path) -> None:
    port = free_port()
    drain = ("--drain-seconds", "3")  # two checks, on a busy machine
    with ServerProcess(tiny_directory, *drain) as one, ServerProcess(tiny_directory, *drain) as two:
        metrics = {"one_metrics": one.metrics.split(":")[1], "two_metrics": two.metrics.split(":")[1]}
        text = HAPROXY.format(port=port, one=one.grpc, two=two.grpc, **metrics)
        (tmp_path / "haproxy.cfg").write_text(text)
        command = ["haproxy", "-db", "-f", tmp_path / "haproxy.cfg"]
        with (
            proxy(command, port, tmp_path / "log") as target,
            grpc.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel,
            Load(asking_once(channel)) as load,
        ):
            stop_one_under(load, [one, two])
        assert load.failures == []
