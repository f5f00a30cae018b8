"""nginx and HAProxy in front of several servers, set up as docs/operations.md recommends."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

needs = {
    program: pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed (Debian package {package})"
    )
    for program, package in (("nginx", "nginx-light"), ("haproxy", "haproxy"))
}

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
{servers}
    }}
    server {{
        listen 127.0.0.1:{port} http2;
        keepalive_requests 1000000;
        location / {{
            grpc_pass grpc://thalweg;
            grpc_next_upstream error timeout non_idempotent;
            grpc_connect_timeout 1s;
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
{servers}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def nginx(folder: Path, servers: Sequence[str]) -> Iterator[str]:
    """folder: for its files. servers: HOST:PORT each. Yields where it listens."""
    port = free_port()
    lines = "\n".join(f"        server {server} fail_timeout=1s;" for server in servers)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, servers=lines))
    command = ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    with _running(command, port, folder / "nginx.log"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def haproxy(folder: Path, servers: Sequence[tuple[str, str]], program: Sequence[str] = ("haproxy",)) -> Iterator[str]:
    """servers: HOST:PORT, and the port of its metrics, each. program: takes HAProxy's arguments."""
    port = free_port()
    lines = "\n".join(f"    server s{i} {server} port {check}" for i, (server, check) in enumerate(servers))
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, servers=lines))
    with _running([*program, "-db", "-f", folder / "haproxy.cfg"], port, folder / "haproxy.log"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command: Sequence[object], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
                break
        yield
    finally:
        process.terminate()
        process.wait(60)
