"""The metrics port: Prometheus' text at /metrics, at / a page for people that draws what it reads there, and /ready."""

import base64
import hashlib
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

logger = logging.getLogger(__name__)

Environment = dict[str, Any]
Start = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[Environment, Start], Iterable[bytes]]


def serve(registry: CollectorRegistry, host: str, port: int) -> WSGIServer:
    """Answers from threads until `shutdown()`. Raises OSError if it cannot listen there."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    server_class: type[_Server] = type("Server", (_Server,), {"address_family": family})
    server: WSGIServer = make_server(host, port, application(registry), server_class, _Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def application(registry: CollectorRegistry) -> Application:
    metrics: Application = make_wsgi_app(registry)
    page = (Path(__file__).parent / "status.html").read_bytes()
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", _policy(page.decode())),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-cache"),
    ]

    def answer(environment: Environment, start: Start) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start("405 Method Not Allowed", [("Allow", "GET, HEAD")])
            return []
        match environment["PATH_INFO"]:
            case "/":
                start("200 OK", headers)
                return [page]
            case "/ready":  # for load balancers that know HTTP checks only
                ready = registry.get_sample_value("ensemble_ready") == 1
                start("200 OK" if ready else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
                return [b"ready\n" if ready else b"not ready\n"]
            case "/metrics":
                return metrics(environment, start)
        start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"not found; expected /, /metrics or /ready\n"]

    return answer


def _policy(page: str) -> str:
    """Content-Security-Policy: this very script and style, requests to this server, and nothing else."""

    def hashes(tag: str) -> str:
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A load balancer's check hangs up once it has seen the status: not worth a stack trace on stderr."""
        logger.debug("metrics port: request failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = 5  # seconds: a connection that says nothing holds a thread no longer

    def log_message(self, format: str, *arguments: object) -> None:
        """A scrape every few seconds is nothing to log."""
