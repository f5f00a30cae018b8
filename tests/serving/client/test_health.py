"""thalweg-health: exit codes and reasons, against a real server."""

import pytest

from serving.client.health import main
from tests.server_process import ServerProcess


def test_a_server_that_is_ready_passes(tiny_server: ServerProcess) -> None:
    for service in ("inference.GRPCInferenceService", "tiny", ""):
        assert main([tiny_server.grpc, "--service", service], {}) == 0


def test_the_port_is_the_servers_own_by_its_environment(tiny_server: ServerProcess) -> None:
    port = tiny_server.grpc.split(":")[1]
    assert main([], {"THALWEG_GRPC_PORT": port}) == 0
    assert main([], {"THALWEG_GRPC_PORT": port, "THALWEG_HEALTH_PORT": "-1"}) == 0
    assert main([], {"THALWEG_GRPC_PORT": "9", "THALWEG_HEALTH_PORT": port}) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["127.0.0.1:9"], "127.0.0.1:9 answers UNAVAILABLE"), (["--service", "unknown"], "answers NOT_FOUND")],
)
def test_what_does_not_serve_fails_with_one_line(
    tiny_server: ServerProcess, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(arguments, {"THALWEG_GRPC_PORT": tiny_server.grpc.split(":")[1]}) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
