"""The life of the process: validate, listen, load, warm up, ready; at SIGTERM not ready, drain, finish, stop."""

import asyncio
import logging
import math
import signal
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse

from protos.graph import DATATYPES
from protos.stored_ensemble import StoredEnsemble
from protos.validate import validate
from serving import device
from serving import ensemble as ensembles
from serving import metrics as prometheus
from serving.batcher import Batcher
from serving.cpu import usable_cpus
from serving.ensemble import Ensemble
from serving.errors import StartupError
from serving.metrics import Metrics
from serving.policy import Policy
from serving.servicer import InferenceServicer, handlers
from serving.settings import Settings

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
QUIET_SECONDS, QUIET_LIMIT_SECONDS = 0.1, 1.0


async def serve(settings: Settings) -> None:
    """Returns after SIGTERM or SIGINT, everything in flight answered. Raises StartupError, InvalidEnsemble."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())

    stored = validate(settings.directory)
    metrics = Metrics()
    servicer = InferenceServicer(metrics, settings.max_batch_rows, _forced(settings))
    checks = health.HealthServicer()
    server = _server(settings, stored)
    server.add_generic_rpc_handlers((handlers(servicer),))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    grpc_port = _bind(server, settings)
    metrics_server = _serve_metrics(settings, metrics)

    await server.start()
    await checks.set("", HealthCheckResponse.SERVING)
    ensemble = batcher = None
    try:
        loading = asyncio.create_task(asyncio.to_thread(_load, settings, stored, metrics))
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            ensemble = await loading
            batcher = Batcher(ensemble.execute, settings.max_batch_rows, settings.max_queue_rows, metrics)
            batching = batcher.start()
            servicer.open(ensemble, batcher)
            for name in (SERVICE, ensemble.name):
                await checks.set(name, HealthCheckResponse.SERVING)
            metrics.ready.set(1)
            metrics.model.info(
                {"name": ensemble.name, "version": ensemble.version, "members": str(len(ensemble.member_ids))}
            )
            host = _bracketed(settings.host)
            # The one line that a parent process waits for.
            print(f"ready grpc={host}:{grpc_port} metrics={host}:{metrics_server.server_port}", flush=True)  # noqa: T201
            await asyncio.wait({stopping, batching}, return_when=asyncio.FIRST_COMPLETED)
            if batching.done():
                batching.result()  # raises: an error of ours, and nothing would be answered any more

        logger.info("draining seconds=%s", settings.drain_seconds)
        servicer.close()
        metrics.ready.set(0)
        await checks.enter_graceful_shutdown()
        await asyncio.sleep(settings.drain_seconds)
        await servicer.quiet(QUIET_SECONDS, QUIET_LIMIT_SECONDS)
        servicer.refuse()
        await servicer.quiet(QUIET_SECONDS, settings.grace_seconds if ensemble else 0.0)
    finally:
        # No grace here: what is left are health watchers and half-open calls, which would wait it out.
        await server.stop(None)
        if batcher is not None:
            await batcher.stop()
        if ensemble is not None:
            ensemble.close()
        metrics_server.shutdown()
        metrics_server.server_close()
        _ignore_signals()
        logger.info("stopped")


def _ignore_signals() -> None:
    """From here to the end of the process. A loop that closes puts back the default action: a second SIGTERM would then
    end the process with another exit code than 0.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _forced(settings: Settings) -> Policy | None:
    return Policy.RANDOM if settings.policy == Policy.RANDOM else None


def _server(settings: Settings, stored: StoredEnsemble) -> grpc.aio.Server:
    tensor = stored.manifest.input
    batch_bytes = settings.max_batch_rows * math.prod(tensor.shape) * DATATYPES[tensor.datatype].itemsize
    # Typed contents take twice as much at most: two bytes for a UINT8 of 128 or more, ten for a negative INT32.
    longest = 2 if DATATYPES[tensor.datatype].kind in "bf" or tensor.datatype == "UINT8" else 10
    max_message_bytes = settings.max_message_bytes or min(longest * batch_bytes + 2**20, 2**31 - 1)
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # or a second server on the same port takes half of the requests
            ("grpc.server_handshake_timeout_ms", 3000),  # sockets that never speak are closed
        ]
    )


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    address = f"{_bracketed(settings.host)}:{settings.grpc_port}"
    try:
        return int(server.add_insecure_port(address))
    except RuntimeError:
        raise StartupError(f"cannot listen on {address}: in use, or not an address of this machine") from None


def _serve_metrics(settings: Settings, metrics: Metrics) -> WSGIServer:
    try:
        return prometheus.serve(metrics, settings.host, settings.metrics_port)
    except OSError as error:
        address = f"{_bracketed(settings.host)}:{settings.metrics_port}"
        raise StartupError(f"cannot listen on {address}: {error.strerror}") from None


def _bracketed(host: str) -> str:
    """As it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def _load(settings: Settings, stored: StoredEnsemble, metrics: Metrics) -> Ensemble:
    provider = device.choose(settings.device)
    threads = settings.threads or usable_cpus()
    ensemble = ensembles.load(stored, provider, threads, metrics)
    logger.info(
        "loaded model=%s version=%s members=%d provider=%s threads=%d",
        ensemble.name, ensemble.version, len(ensemble.member_ids), provider, threads,
    )  # fmt: skip
    ensemble.warm_up(settings.max_batch_rows)
    return ensemble
