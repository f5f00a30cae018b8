"""While the HTTP port is attacked, a probe asks the gRPC port every 50 ms and never fails; HTTP answers afterwards."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import http_wire
from tests.hostile.test_wire import withstands
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def server(tiny_directory: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_directory, "--http-port", "0") as server:
        yield server


def refused(*statuses: str) -> Callable[[str], bool]:
    return lambda status: status in (*statuses, "closed")


def all_refused(seen: dict[str, int]) -> bool:
    return all(status == "closed" or status.startswith("4") for status in seen)


ATTACKS: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool]]] = {
    # name: the attack, and what must be true of what it saw
    "slow heads": (http_wire.slow_heads, lambda opened: opened == 600),
    "slow bodies": (http_wire.slow_bodies, lambda opened: opened == 300),
    "endless headers": (http_wire.endless_headers, refused("400", "431")),
    "endless body": (http_wire.endless_body, refused("413")),
    "long body": (http_wire.long_body, refused("413")),
    "gzip bombs": (http_wire.gzip_bombs, lambda seen: dict(seen) == {"413": 10}),
    "nested JSON": (http_wire.nested_json, all_refused),
    "garbage": (http_wire.garbage, all_refused),
    "pipelined": (http_wire.pipelined, lambda received: received > 0),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_probe_fails_and_http_answers_after(server: ServerProcess, name: str) -> None:
    assert server.http is not None
    withstands(server, name, server.http, *ATTACKS[name])
    with urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=30) as response:
        assert json.load(response) == {"ready": True}


def test_after_all_of_them_it_ends_as_ever(server: ServerProcess) -> None:
    code, errors = server.stop()
    assert code == 0
    assert "Traceback" not in errors
