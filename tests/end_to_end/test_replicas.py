"""SIGTERM under load: two replicas and our client, behind nginx, behind HAProxy; three replicas restarted in turn.

The proxies' settings are those that docs/operations.md recommends; their clients make one attempt.
"""

import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest

from serving.client import Client
from tests.load import Load, asking, asking_once
from tests.proxies import free_port, haproxy, needs, nginx
from tests.server_process import ServerProcess


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
    # Not enable_retries = 0: gRPC sends again what never left, and without that loses a call now and then to a race of
    # its own, between a new stream and the GOAWAY of an aged connection.
    options = [("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')]
    with ServerProcess(tiny_directory, *age) as one, ServerProcess(tiny_directory, *age) as two:
        with (
            grpc.insecure_channel(f"ipv4:{one.grpc},{two.grpc}", options) as channel,
            Load(asking_once(channel)) as load,
        ):
            stop_one_under(load, [one, two])
        assert load.failures == []


def test_a_client_that_asks_seldom_is_answered_until_its_connection_has_ended(tiny_directory: Path) -> None:
    ended = threading.Event()
    with (
        ServerProcess(tiny_directory, "--max-connection-age-seconds", "2") as server,
        grpc.insecure_channel(server.grpc, [("grpc.enable_retries", 0)]) as channel,
    ):
        ask = asking_once(channel)
        ask()
        states = set()

        def changed(state: grpc.ChannelConnectivity) -> None:
            states.add(state)
            if state is not grpc.ChannelConnectivity.READY and grpc.ChannelConnectivity.READY in states:
                ended.set()

        channel.subscribe(changed)
        server.process.terminate()
        answered = 0
        while not ended.wait(0.25):  # longer than what a server takes for silence
            ask()
            answered += 1
        assert answered >= 1
        _, errors = server.process.communicate(timeout=60)
        assert server.process.returncode == 0, errors


@needs["nginx"]
def test_clients_behind_nginx_do_not_notice(tiny_directory: Path, tmp_path: Path) -> None:
    with (
        ServerProcess(tiny_directory) as one,
        ServerProcess(tiny_directory) as two,
        nginx(tmp_path, [one.grpc, two.grpc]) as target,
        grpc.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel,
        Load(asking_once(channel)) as load,
    ):
        stop_one_under(load, [one, two])
    assert load.failures == []


@needs["haproxy"]
def test_clients_behind_haproxy_do_not_notice(tiny_directory: Path, tmp_path: Path) -> None:
    drain = ("--drain-seconds", "3")  # two checks, on a busy machine
    with (
        ServerProcess(tiny_directory, *drain) as one,
        ServerProcess(tiny_directory, *drain) as two,
        haproxy(tmp_path, [(server.grpc, server.metrics.split(":")[1]) for server in (one, two)]) as target,
        grpc.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel,
        Load(asking_once(channel)) as load,
    ):
        stop_one_under(load, [one, two])
    assert load.failures == []
