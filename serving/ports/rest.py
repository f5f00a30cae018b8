"""The protocol over HTTP/JSON, for those who have curl only: every call is the servicer's own, in another dress.

Optional: `--http-port`, extra `[http]`; Starlette and uvicorn are imported nowhere else.
"""

import asyncio
import contextlib
import logging
import math
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import grpc
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from protos import open_inference_grpc_pb2 as oip
from serving.errors import InvalidRequest, ServingError
from serving.ports import identity, rest_messages, sockets
from serving.ports.tokens import Tokens
from serving.servicer import InferenceServicer

logger = logging.getLogger(__name__)
logging.getLogger("uvicorn").setLevel(logging.WARNING)  # that it starts and ends, the server says itself

READ_SECONDS = 30.0  # for a body to arrive
IDLE_SECONDS = 30.0  # a connection that begins no request for so long is closed
MOST_CONNECTIONS = 1000
CERTIFICATE = "certificate"  # in the state of a connection: the client's, DER
LITTLE_BYTES = 2**16
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")

Result = TypeVar("Result")
Endpoint = Callable[[Request], Awaitable[Response]]


class Call:
    """What the servicer asks of a gRPC call, of an HTTP request."""

    def __init__(self, request: Request) -> None:
        self._headers = tuple(request.headers.items())
        self._scope = request.scope

    def time_remaining(self) -> None:
        return None  # HTTP knows no deadline; parameter `timeout` does

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._headers

    def auth_context(self) -> dict[str, tuple[bytes, ...]]:
        certificate = self._scope["state"].get(CERTIFICATE)
        return {identity.PEM: (ssl.DER_cert_to_PEM_cert(certificate).encode(),)} if certificate else {}

    def peer(self) -> str:
        host, port = self._scope["client"]
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def application(servicer: InferenceServicer, tokens: Tokens | None, max_body_bytes: int) -> Starlette:
    """tokens: who may ask for anything but health; None: everyone."""

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def call(request: Request) -> Response:
            if tokens is not None and not tokens.allow(request.headers.get("authorization")):
                return _error(
                    401, "expected the header 'authorization: Bearer TOKEN' with a token that this server knows"
                )
            return await endpoint(request)

        return call

    def told(method: Any, message_class: Any, *, wrap: Callable[[Any], Any] = rest_messages.plain) -> Endpoint:
        """A call whose request is no more than the names in its path."""

        async def call(request: Request) -> Response:
            return JSONResponse(wrap(await method(message_class(**request.path_params), Call(request))))

        return call

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        answer = await servicer.ServerReady(oip.ServerReadyRequest(), Call(request))  # type: ignore[arg-type]
        return JSONResponse({"ready": answer.ready}, 200 if answer.ready else 503)

    async def model_ready(request: Request) -> Response:
        message = oip.ModelReadyRequest(**request.path_params)
        answer = await servicer.ModelReady(message, Call(request))  # type: ignore[arg-type]
        return JSONResponse({"name": message.name, "ready": answer.ready}, 200 if answer.ready else 503)

    async def infer(request: Request) -> Response:
        body = await _body(request, max_body_bytes)
        length = request.headers.get("inference-header-content-length")
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 12):
            raise InvalidRequest(f"Inference-Header-Content-Length is '{length[:80]}'; expected a number of bytes")
        json_bytes = None if length is None else int(length)
        names = request.path_params["name"], request.path_params.get("version", "")
        message, wanted = await _aside(len(body), rest_messages.request, *names, body, json_bytes)
        answer = await _unless_gone(request, servicer.ModelInfer(message, Call(request)))  # type: ignore[arg-type]
        content, json_end = await _aside(answer.ByteSize(), rest_messages.response, answer, wanted)
        # While the server drains, clients look for another one, request by request.
        headers = {} if servicer.ready else {"Connection": "close"}
        if json_end is None:
            return Response(content, media_type="application/json", headers=headers)
        headers["Inference-Header-Content-Length"] = str(json_end)
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def index(request: Request) -> Response:
        said = await _said(request, max_body_bytes)
        message = oip.RepositoryIndexRequest(ready=said.get("ready") is True)
        answer = await servicer.RepositoryIndex(message, Call(request))  # type: ignore[arg-type]
        return JSONResponse(rest_messages.plain(answer)["models"])

    def control(method: Any, message_class: Any) -> Endpoint:
        async def call(request: Request) -> Response:
            said = await _said(request, max_body_bytes)
            message = message_class(model_name=request.path_params["name"])
            for name in rest_messages.parameters(said):
                message.parameters[name].bool_param = True  # refused or without effect, by its name alone
            await method(message, Call(request))
            return JSONResponse({})

        return call

    def routes(suffix: str, endpoint: Endpoint, verb: str = "GET") -> list[Route]:
        return [Route(path + suffix, guarded(endpoint), methods=[verb]) for path in _MODEL]

    def configured(answer: oip.ModelConfigResponse) -> Any:
        return rest_messages.plain(answer.config)

    statistics = told(servicer.ModelStatistics, oip.ModelStatisticsRequest)
    load = control(servicer.RepositoryModelLoad, oip.RepositoryModelLoadRequest)
    unload = control(servicer.RepositoryModelUnload, oip.RepositoryModelUnloadRequest)
    return Starlette(
        routes=[
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/v2", guarded(told(servicer.ServerMetadata, oip.ServerMetadataRequest))),
            Route("/v2/models/stats", guarded(statistics)),
            *routes("", told(servicer.ModelMetadata, oip.ModelMetadataRequest)),
            *routes("/ready", model_ready),
            *routes("/config", told(servicer.ModelConfig, oip.ModelConfigRequest, wrap=configured)),
            *routes("/stats", statistics),
            *routes("/infer", infer, "POST"),
            Route("/v2/repository/index", guarded(index), methods=["POST"]),
            Route("/v2/repository/models/{name}/load", guarded(load), methods=["POST"]),
            Route("/v2/repository/models/{name}/unload", guarded(unload), methods=["POST"]),
        ],
        middleware=[Middleware(GZipMiddleware, minimum_size=1024)],
        exception_handlers={
            ServingError: _refused,
            HTTPException: _no_such,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )


async def _body(request: Request, most: int) -> bytes:
    """Decompressed. Raises HTTPException, InvalidRequest."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise HTTPException(413, f"the body has more than {most} bytes")
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {READ_SECONDS:.0f} s") from None
    body = b"".join(parts)
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise HTTPException(415, f"content-encoding '{encoding[:80]}'; expected gzip or deflate")
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either, by its first bytes
    try:
        body = decompressor.decompress(body, most + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is no {encoding}: {error}") from None
    if len(body) > most:
        raise HTTPException(413, f"the body has more than {most} bytes, decompressed")
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequest(f"the body is no whole {encoding} stream")
    return body


async def _aside(size: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """In a thread if it is much and would hold up everything else; a little is done sooner than handed over."""
    return work(*arguments) if size < LITTLE_BYTES else await asyncio.to_thread(work, *arguments)


async def _said(request: Request, most: int) -> dict[str, Any]:
    """An object, or nothing at all."""
    body = await _body(request, min(most, rest_messages.LARGEST_JSON_BYTES))
    return rest_messages.parse_object(body) if body else {}


async def _unless_gone(request: Request, answering: Coroutine[Any, Any, Any]) -> Any:
    """A client that goes away takes its rows out of the queue."""
    answer = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(request.receive())  # after the body, nothing but the end of the connection
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        for future in (answer, gone):
            future.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    wait_s = error.retry_after_s
    headers = None if wait_s is None else {"Retry-After": str(math.ceil(wait_s))}
    return _error(STATUSES.get(error.code, 500), str(error), headers)


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


async def _gone(request: Request, error: Exception) -> Response:
    return _error(499, "the client went away")  # nobody reads it


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "internal error")


class Server:
    """uvicorn on a socket of ours, on this event loop, without its signal handlers. Listens from the beginning."""

    def __init__(self, app: Starlette, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Raises OSError if it cannot listen there."""
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._listening = socket.create_server((host, port), family=family)
        self.port: int = self._listening.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=round(IDLE_SECONDS),
            timeout_graceful_shutdown=1,  # the drain is over by then
        )
        config.load()
        if tls is not None:
            config.ssl = tls
        self._server = _Uvicorn(config)

    async def start(self) -> None:
        self._serving = asyncio.create_task(self._server.serve([self._listening]), name="http")
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0)

    async def stop_listening(self) -> None:
        """Connections that are there go on."""
        await sockets.empty(self._listening)
        for each in self._server.servers:
            each.close()

    async def stop(self, grace: float | None = None) -> None:
        self._server.should_exit = True
        await self._serving


class _Connection(H11Protocol):
    """h11 limits the size of headers, which the faster parser does not; uvicorn would wait for them forever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (connection := transport.get_extra_info("ssl_object")) is not None:
            self.app_state = {**self.app_state, CERTIFICATE: connection.getpeercert(binary_form=True)}
        self.loop.call_later(IDLE_SECONDS, self._close_if_idle, self.cycle)

    def _close_if_idle(self, last: object) -> None:
        """last: what it was answering when this was asked before."""
        if (self.cycle is None or self.cycle.response_complete) and self.cycle is last:
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(IDLE_SECONDS, self._close_if_idle, self.cycle)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has its own."""
        yield
