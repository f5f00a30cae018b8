"""The life of the process: validate, listen, load, warm up, ready; at SIGTERM not ready, drain, finish, stop."""

import asyncio
import logging
import math
import signal
from collections.abc import Sequence
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse

from protos.ensemble_pb2 import EnsembleManifest
from protos.graph import DATATYPES
from serving import status
from serving.control import Control
from serving.cpu import usable_cpus
from serving.decoder import Decoder
from serving.errors import StartupError
from serving.loader import Loader
from serving.metrics import Metrics
from serving.observation import Observer
from serving.pictures import takes_pictures
from serving.policy import Policy
from serving.reload import Reloader
from serving.repository import Repository
from serving.servicer import InferenceServicer, handlers
from serving.settings import Settings
from serving.traces import open_tracer

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
QUIET_SECONDS, QUIET_LIMIT_SECONDS = 0.1, 1.0
MOST_DECODING_THREADS = 4  # each may hold a picture of --max-picture-pixels
PICTURES_BYTES = 2**24  # room for encoded pictures in a request, which can be larger than the rows they become


async def serve(settings: Settings) -> None:
    """Returns after SIGTERM or SIGINT, everything in flight answered. Raises StartupError, InvalidEnsemble."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())

    metrics = Metrics()
    tracer = open_tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None
    repository = Repository()
    checks = health.HealthServicer()
    reloader = Reloader(settings.directories, Loader(settings, metrics), repository, checks, metrics)
    manifests = reloader.read(lenient=settings.watch)
    control = Control(reloader if settings.allow_control else None)
    observer = Observer(metrics, tracer)
    decoding_threads = min(settings.threads or usable_cpus(), MOST_DECODING_THREADS)
    decoder = Decoder(settings.max_picture_pixels, decoding_threads, settings.max_queue_rows)
    servicer = InferenceServicer(repository, observer, settings.max_batch_rows, _forced(settings), decoder, control)
    server = _server(settings, manifests)
    server.add_generic_rpc_handlers((handlers(servicer),))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    grpc_port = _bind(server, settings)
    metrics_server = _serve_metrics(settings, metrics)

    await server.start()
    await checks.set("", HealthCheckResponse.SERVING)
    try:
        loading = asyncio.create_task(reloader.load_all(lenient=settings.watch))
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await loading
            servicer.open()
            await checks.set(SERVICE, HealthCheckResponse.SERVING)
            metrics.ready.set(1)
            host = _bracketed(settings.host)
            # The one line that a parent process waits for.
            print(f"ready grpc={host}:{grpc_port} metrics={host}:{metrics_server.server_port}", flush=True)  # noqa: T201
            endless = [asyncio.create_task(repository.failed())]
            if settings.watch:
                endless.append(asyncio.create_task(reloader.watch(settings.watch_seconds)))
            await asyncio.wait({stopping, *endless}, return_when=asyncio.FIRST_COMPLETED)
            for task in endless:
                if task.done():
                    task.result()  # raises: an error of ours, and nothing would be answered any more
                task.cancel()

        logger.info("draining seconds=%s", settings.drain_seconds)
        opened = servicer.close()
        metrics.ready.set(0)
        await checks.enter_graceful_shutdown()
        await asyncio.sleep(settings.drain_seconds)
        await servicer.quiet(QUIET_SECONDS, QUIET_LIMIT_SECONDS)
        servicer.refuse()
        await servicer.quiet(QUIET_SECONDS, settings.grace_seconds if opened else 0.0)
    finally:
        # No grace here: what is left are health watchers and half-open calls, which would wait it out.
        await server.stop(None)
        await repository.close()
        await asyncio.to_thread(decoder.close)
        await reloader.close()
        metrics_server.shutdown()
        metrics_server.server_close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)
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


def _server(settings: Settings, manifests: Sequence[EnsembleManifest]) -> grpc.aio.Server:
    max_message_bytes = settings.max_message_bytes or _longest_message(manifests, settings.max_batch_rows)
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
        return status.serve(metrics.registry, settings.host, settings.metrics_port)
    except OSError as error:
        address = f"{_bracketed(settings.host)}:{settings.metrics_port}"
        raise StartupError(f"cannot listen on {address}: {error.strerror}") from None


def _bracketed(host: str) -> str:
    """As it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
