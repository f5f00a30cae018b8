"""The life of the process: validate, listen, load, warm up, ready; at SIGTERM not ready, drain, finish, stop."""

import asyncio
import gc
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse

from serving import signals
from serving.budget import Budget
from serving.decoder import Decoder
from serving.networks.cpu import usable_cpus
from serving.ports import identity, reflection, sockets, transport
from serving.ports.handlers import handlers
from serving.repository.control import Control
from serving.repository.loader import Loader
from serving.repository.models import Repository
from serving.repository.reload import Reloader
from serving.repository.trust import trust
from serving.servicer import InferenceServicer
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.telemetry.observation import Observer
from serving.telemetry.traces import Tracer, open_tracer

if TYPE_CHECKING:
    from serving.ports import rest

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
QUIET_SECONDS, QUIET_LIMIT_SECONDS = 0.1, 1.0
CLOSE_SECONDS = 2.0  # for threads to end, once nobody waits for them
MOST_DECODING_THREADS = 4  # each may hold a picture of --max-picture-pixels


async def serve(settings: Settings) -> None:
    """Returns after SIGTERM or SIGINT, everything in flight answered. Raises StartupError, InvalidEnsemble."""
    stop = signals.stop_at_signal()
    stopping = asyncio.create_task(stop.wait())

    metrics = Metrics()
    tracer = open_tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None
    repository = Repository()
    checks = health.HealthServicer()
    loader = Loader(settings, metrics)
    reloader = Reloader(settings.directories, loader, repository, checks, metrics, trust(settings.require_signature))
    reading = asyncio.create_task(asyncio.to_thread(reloader.read, lenient=settings.watch))
    await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not reading.done():
        signals.end()
    manifests = reading.result()
    logger.info("read ensembles=%d", len(manifests))
    control = Control(reloader if settings.allow_control else None)
    observer = Observer(metrics, tracer)
    decoding_threads = min(settings.threads or usable_cpus(), MOST_DECODING_THREADS)
    decoder = Decoder(settings.max_picture_pixels, decoding_threads, settings.max_queue_rows)
    forced, max_rows = settings.forced_policy, settings.max_batch_rows
    budget = Budget(settings.query_budget_rate, settings.budget_burst) if settings.query_budget_rate else None
    identify = identity.choose(settings)
    servicer = InferenceServicer(repository, observer, max_rows, forced, decoder, control, identify, budget)
    server = transport.inference_server(settings, manifests, metrics)
    server.add_generic_rpc_handlers((handlers(servicer),))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable(server)
    grpc_port = transport.listen(server, settings.host, settings.grpc_port, transport.credentials(settings, metrics))
    metrics_server = transport.metrics_server(settings, metrics)
    host = transport.bracketed(settings.host)
    ports = f"grpc={host}:{grpc_port} metrics={host}:{metrics_server.server_port}"
    servers: list[Any] = [server]
    http_server = transport.http_server(settings, servicer, manifests, metrics) if settings.http_port >= 0 else None
    if http_server is not None:
        servers.append(http_server)
        ports += f" http={host}:{http_server.port}"
    if settings.health_port >= 0:
        servers.append(transport.health_server(checks))
        ports += f" health={host}:{transport.listen(servers[-1], settings.host, settings.health_port)}"

    for each in servers:
        await each.start()
    await checks.set("", HealthCheckResponse.SERVING)
    try:
        loading = asyncio.create_task(reloader.load_all(lenient=settings.watch))
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await loading
            # The collector never again looks through what lives as long as the process.
            gc.collect()
            gc.freeze()
            servicer.open()
            await checks.set(SERVICE, HealthCheckResponse.SERVING)
            metrics.ready.set(1)
            print(f"ready {ports}", flush=True)  # noqa: T201  # the one line that a parent process waits for
            watching = [reloader.watch(settings.watch_seconds)] if settings.watch else []
            await _until(stopping, repository.failed(), *watching)

        metrics.ready.set(0)
        await checks.enter_graceful_shutdown()
        await _drain(settings, servicer, grpc_port, http_server)
    finally:
        # No grace here: what is left are health watchers and half-open calls, which would wait it out.
        await asyncio.gather(*(each.stop(None) for each in servers))
        closing = asyncio.create_task(_close(repository, reloader, decoder, tracer))
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        metrics_server.shutdown()
        metrics_server.server_close()
        signals.ignore()
        logger.info("stopped")
        if stop.is_set() and not closing.done():
            signals.end()


async def _until(stopping: "asyncio.Task[Any]", *endless: Coroutine[Any, Any, None]) -> None:
    """Raises what one of them raises: an error of ours, and nothing would be answered any more."""
    tasks = [asyncio.create_task(each) for each in endless]
    await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()


async def _drain(settings: Settings, servicer: InferenceServicer, port: int, http_server: "rest.Server | None") -> None:
    """Answers what comes, then what comes over connections that are there, then what has begun."""
    logger.info("draining seconds=%s", settings.drain_seconds)
    was_ready = servicer.close()
    await asyncio.sleep(settings.drain_seconds)
    await sockets.stop_listening(port)
    if http_server is not None:
        await http_server.stop_listening()
    if settings.max_connection_age_seconds:  # by when they have ended without loss, however seldom a client asks
        aged_seconds = 1.1 * settings.max_connection_age_seconds + QUIET_LIMIT_SECONDS
        await _until_none_is_connected(port, min(aged_seconds, settings.grace_seconds))
    await servicer.quiet(QUIET_SECONDS, QUIET_LIMIT_SECONDS)
    servicer.refuse()
    await servicer.finished(settings.grace_seconds if was_ready else 0.0)
    await asyncio.sleep(QUIET_SECONDS)  # the last answers are on their way
    sockets.disconnect(port)


async def _until_none_is_connected(port: int, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while sockets.connections(port) and time.monotonic() < end:  # noqa: ASYNC110  # nothing tells of their end
        await asyncio.sleep(QUIET_SECONDS)


async def _close(repository: Repository, reloader: Reloader, decoder: Decoder, tracer: Tracer | None) -> None:
    await repository.close()
    await reloader.close()
    await asyncio.to_thread(decoder.close)
    if tracer is not None:
        await asyncio.to_thread(tracer.close)  # sends what it holds
    await asyncio.get_running_loop().shutdown_default_executor()
