"""Ports and connections: where the server listens, what it takes from a connection, and when it lets one go."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health

from protos.ensemble_pb2 import EnsembleManifest
from protos.graph import DATATYPES
from serving.errors import StartupError
from serving.pictures import takes_pictures
from serving.ports import tls
from serving.ports.tokens import TokenCheck, Tokens
from serving.servicer import InferenceServicer
from serving.settings import Settings
from serving.telemetry import status
from serving.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from serving.ports import rest

logger = logging.getLogger(__name__)

PICTURES_BYTES = 2**24  # room for encoded pictures in a request, which can be larger than the rows they become
MOST_STREAMS = 4096
MAX_HEADER_BYTES = 2**14  # of a call
HANDSHAKE_SECONDS = 3.0  # of TLS and HTTP/2: a socket that never speaks is closed


def inference_server(settings: Settings, manifests: Sequence[EnsembleManifest], metrics: Metrics) -> grpc.aio.Server:
    """Not listening yet. Raises StartupError for a file of tokens that cannot be used."""
    options = {
        # Counted after decompression, so a small message that unpacks to a large one is refused as well.
        "grpc.max_receive_message_length": max_message_bytes(settings, manifests),
        "grpc.max_send_message_length": -1,
        # Of one connection; also what makes the core count calls that were taken back. More than the queue can hold, or
        # a client's own library would hold back what is to be refused at once.
        "grpc.max_concurrent_streams": min(settings.max_queue_rows + settings.max_batch_rows + 100, MOST_STREAMS),
        "grpc.keepalive_time_ms": _ms(settings.keepalive_seconds),
        "grpc.keepalive_timeout_ms": _ms(settings.keepalive_timeout_seconds),
        "grpc.http2.min_ping_interval_without_data_ms": _ms(settings.min_ping_seconds),
        "grpc.keepalive_permit_without_calls": 1,  # or an idle client may ping every two hours only
    }
    if settings.max_connection_age_seconds:
        options["grpc.max_connection_age_ms"] = _ms(settings.max_connection_age_seconds)  # 10 % more or less, by gRPC
        options["grpc.max_connection_age_grace_ms"] = _ms(settings.max_connection_age_grace_seconds)
    interceptors = []
    if (tokens := _tokens(settings, metrics)) is not None:
        interceptors.append(TokenCheck(tokens))
        if not settings.tls_certificate:
            logger.warning("tokens travel readable for everyone on the way: there is no --tls-certificate")
    return grpc.aio.server(options=[*_COMMON, *options.items()], interceptors=interceptors)


def health_server(checks: health.HealthServicer) -> grpc.aio.Server:
    """Health alone, in plain text and without a token: Kubernetes' probes know neither TLS nor headers."""
    server = grpc.aio.server(
        options=[*_COMMON, ("grpc.max_receive_message_length", 2**16), ("grpc.max_concurrent_streams", 64)]
    )
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    return server


def listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
    """Returns the port. Raises StartupError."""
    address = f"{bracketed(host)}:{port}"
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError:
        raise StartupError(f"cannot listen on {address}: in use, or not an address of this machine") from None


def http_server(
    settings: Settings, servicer: InferenceServicer, manifests: Sequence[EnsembleManifest], metrics: Metrics
) -> "rest.Server":
    """Raises StartupError, without the packages of extra [http] as well."""
    try:
        from serving.ports import rest
    except ImportError as error:
        raise StartupError(f"--http-port: {error}; pip install 'thalweg[http]'") from None
    tokens = _tokens(settings, metrics)
    # A number takes at most three times as much room in JSON as in the longest form of a message.
    max_body_bytes = settings.max_message_bytes or 3 * max_message_bytes(settings, manifests)
    app = rest.application(servicer, tokens, max_body_bytes)
    try:
        files = _certificate(settings)
        return rest.Server(app, settings.host, settings.http_port, None if files is None else tls.context(files))
    except OSError as error:
        address = f"{bracketed(settings.host)}:{settings.http_port}"
        raise StartupError(f"cannot listen on {address}: {error.strerror}") from None


def metrics_server(settings: Settings, metrics: Metrics) -> WSGIServer:
    """Answers already. Raises StartupError."""
    try:
        return status.serve(metrics.registry, settings.host, settings.metrics_port)
    except OSError as error:
        address = f"{bracketed(settings.host)}:{settings.metrics_port}"
        raise StartupError(f"cannot listen on {address}: {error.strerror}") from None


def credentials(settings: Settings, metrics: Metrics) -> grpc.ServerCredentials | None:
    """Of the gRPC port; None: plain text. Raises StartupError."""
    files = _certificate(settings)
    if files is None:
        return None
    metrics.watch_certificate(tls.expiry(files))
    return tls.credentials(files)


def _tokens(settings: Settings, metrics: Metrics) -> Tokens | None:
    if not settings.tokens:
        return None
    return Tokens(Path(settings.tokens), count_refusal=metrics.unauthenticated.inc)


def _certificate(settings: Settings) -> tls.CertificateFiles | None:
    if not settings.tls_certificate:
        return None
    client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
    return tls.CertificateFiles(Path(settings.tls_certificate), Path(settings.tls_key), client_ca)


def bracketed(host: str) -> str:
    """As it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


_COMMON = (
    # By default gRPC's core drops calls at random, with CANCELLED, once 1,000 wait for the event loop to take them up,
    # whosoever they are: a client that took back 20,000 calls at once had its neighbours' calls dropped.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # By default calls with 8 to 16 KiB of headers are refused at random, the more of them the more they have.
    ("grpc.max_metadata_size", MAX_HEADER_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_HEADER_BYTES),
    ("grpc.so_reuseport", 0),  # or a second server on the same port takes half of the requests
    ("grpc.server_handshake_timeout_ms", _ms(HANDSHAKE_SECONDS)),
)


def max_message_bytes(settings: Settings, manifests: Sequence[EnsembleManifest]) -> int:
    return settings.max_message_bytes or _longest_message(manifests, settings.max_batch_rows)


def _longest_message(manifests: Sequence[EnsembleManifest], max_batch_rows: int) -> int:
    """What a full batch can take, in its longest form, and 1 MiB; 17 MiB at least if there may be pictures."""
    longest_bytes = 0
    for tensor in (manifest.input for manifest in manifests):
        batch_bytes = max_batch_rows * math.prod(tensor.shape) * DATATYPES[tensor.datatype].itemsize
        # Typed contents take twice as much at most: two bytes for a UINT8 of 128 or more, ten for a negative INT32.
        growth = 2 if DATATYPES[tensor.datatype].kind in "bf" or tensor.datatype == "UINT8" else 10
        longest_bytes = max(longest_bytes, growth * batch_bytes)
        if takes_pictures(tensor.datatype, tuple(tensor.shape)):
            longest_bytes = max(longest_bytes, PICTURES_BYTES)
    return min(longest_bytes + 2**20, 2**31 - 1)
