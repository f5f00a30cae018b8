"""The life of the process: listen, load, warm up, ready; at SIGTERM not ready, drain, finish, stop."""

import asyncio
import logging
import signal

import grpc
import prometheus_client
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse

from serving import device
from serving import ensemble as ensembles
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


async def serve(settings: Settings) -> None:
    """Returns after SIGTERM or SIGINT, everything in flight answered. Raises StartupError, InvalidEnsemble."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    metrics = Metrics()
    servicer = InferenceServicer(metrics, settings.max_batch_rows, _forced(settings))
    checks = health.HealthServicer()
    server = _server(settings)
    server.add_generic_rpc_handlers((handlers(servicer),))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    grpc_port = _bind(server, settings)
    metrics_server, _ = _metrics_server(settings, metrics)

    await server.start()
    await checks.set("", HealthCheckResponse.SERVING)
    ensemble = batcher = None
    try:
        ensemble = await asyncio.to_thread(_load, settings, metrics)
        batcher = Batcher(ensemble.execute, settings.max_batch_rows, settings.max_queue_rows, metrics)
        batcher.start()
        servicer.open(ensemble, batcher)
        for name in (SERVICE, ensemble.name):
            await checks.set(name, HealthCheckResponse.SERVING)
        metrics.ready.set(1)
        metrics.model.info(
            {"name": ensemble.name, "version": ensemble.version, "members": str(len(ensemble.member_ids))}
        )
        ready = f"ready grpc={settings.host}:{grpc_port} metrics={settings.host}:{metrics_server.server_port}"
        # The one line that a parent process waits for.
        print(ready, flush=True)  # noqa: T201
        await stop.wait()
        logger.info("draining seconds=%s", settings.drain_seconds)
        servicer.close()
        metrics.ready.set(0)
        await checks.enter_graceful_shutdown()
        await asyncio.sleep(settings.drain_seconds)
    finally:
        # stop() refuses new calls at once and returns when those in flight have been answered.
        await server.stop(settings.grace_seconds)
        if batcher is not None:
            await batcher.stop()
        if ensemble is not None:
            ensemble.close()
        metrics_server.shutdown()
        metrics_server.server_close()
        logger.info("stopped")


def _forced(settings: Settings) -> Policy | None:
    return Policy.RANDOM if settings.policy == Policy.RANDOM else None


def _server(settings: Settings) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # or a second server on the same port takes half of the requests
            ("grpc.server_handshake_timeout_ms", 3000),  # sockets that never speak are closed
        ]
    )


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        return int(server.add_insecure_port(f"{settings.host}:{settings.grpc_port}"))
    except RuntimeError:
        raise StartupError(
            f"cannot listen on {settings.host}:{settings.grpc_port}: in use, or not an address of this machine"
        ) from None


def _metrics_server(settings: Settings, metrics: Metrics):  # type: ignore[no-untyped-def]
    try:
        return prometheus_client.start_http_server(settings.metrics_port, settings.host, metrics.registry)
    except OSError as error:
        raise StartupError(f"cannot listen on {settings.host}:{settings.metrics_port}: {error.strerror}") from None


def _load(settings: Settings, metrics: Metrics) -> Ensemble:
    provider = device.choose(settings.device)
    threads = settings.threads or usable_cpus()
    ensemble = ensembles.load(settings.directory, provider, threads, metrics)
    logger.info(
        "loaded model=%s version=%s members=%d provider=%s threads=%d",
        ensemble.name, ensemble.version, len(ensemble.member_ids), provider, threads,
    )  # fmt: skip
    ensemble.warm_up(settings.max_batch_rows)
    return ensemble
