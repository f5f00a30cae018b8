"""Every Prometheus metric, declared in one place. Label sets exist from the start, so a rate is 0, not absent."""

import socket
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

# Geometric, 100 µs to 52 s: the ends of what a request can take.
SECONDS = tuple(1e-4 * 2**i for i in range(20))
ROWS = tuple(2.0**i for i in range(13))
CODES = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
)
LOADS = ("ok", "refused")
REJECTIONS = ("queue_full", "expired")

prometheus_client.disable_created_metrics()  # a series more for each one, which nobody asks for


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("ensemble_requests", "Inference requests answered", ["code"], registry=registry)
        self.rejected = Counter("ensemble_rejected", "Requests refused unrun", ["reason"], registry=registry)
        self.request_seconds = Histogram(
            "ensemble_request_seconds", "Inference request, arrival to answer", buckets=SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "ensemble_queue_seconds", "Wait of a request for its batch", buckets=SECONDS, registry=registry
        )
        self.execute_seconds = Histogram(
            "ensemble_execute_seconds", "Running the members on a batch", buckets=SECONDS, registry=registry
        )
        self.combine_seconds = Histogram(
            "ensemble_combine_seconds", "Combining the members' logits of a batch", buckets=SECONDS, registry=registry
        )
        self.batch_rows = Histogram("ensemble_batch_rows", "Rows in a batch", buckets=ROWS, registry=registry)
        self.rows = Counter("ensemble_rows", "Rows answered", registry=registry)
        self.members_run = Counter("ensemble_members_run", "Rows answered, times members on each", registry=registry)
        self.queue_rows = Gauge("ensemble_queue_rows", "Rows waiting now", registry=registry)
        self.loads = Counter("ensemble_loads", "Ensembles loaded, and refused", ["result"], registry=registry)
        self.ready = Gauge("ensemble_ready", "1 while the server takes requests", registry=registry)
        self.model = Info("ensemble_model", "What is served", ["name", "version"], registry=registry)
        for code in CODES:
            self.requests.labels(code.name)
        for result in LOADS:
            self.loads.labels(result)
        for reason in REJECTIONS:
            self.rejected.labels(reason)


def serve(metrics: Metrics, host: str, port: int) -> WSGIServer:
    """Serves them over HTTP from a thread, until `shutdown()`. Raises OSError if it cannot listen there."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    server_class: type[_Server] = type("Server", (_Server,), {"address_family": family})
    server: WSGIServer = make_server(
        host, port, prometheus_client.make_wsgi_app(metrics.registry), server_class, _Handler
    )
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 5  # seconds: a connection that says nothing holds a thread no longer

    def log_message(self, format: str, *arguments: object) -> None:
        """A scrape every few seconds is nothing to log."""
