"""Clients, blocking and asyncio: arrays, pictures or files in, a typed answer out.

    with Client("dns:///thalweg:8001", "digits") as client:
        client.predict("scan.png").probs

A name that stands for several servers is asked in turn (round robin). Every call has a deadline. UNAVAILABLE alone is
tried again, by gRPC itself: it means that no server has begun with the request. grpc.RpcError carries the server's
message in `details()`.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.client import inputs, messages
from serving.client.inputs import Source
from serving.client.messages import Answer, Asked, Model

__all__ = ["Answer", "AsyncClient", "Client", "Model", "Tls"]

IN_FLIGHT = 4  # requests of one call at a time: enough to keep a server busy, too few to fill its queue
ATTEMPTS = 5  # the most that gRPC makes
# Where a link is cut, nothing says so: what is sent and not acknowledged, or a ping without an answer, for so long ends
# the connection, and the call is tried elsewhere. No ping without calls, which servers count as an offence.
KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS = 15, 5
RESOLVE_SECONDS = 1  # a name is asked for again no sooner; gRPC's default is 30, too long for new replicas
LARGEST_RETRIED_BYTES = 2**28  # gRPC keeps a request this large for another attempt; its default is 256 KiB


@dataclass(frozen=True)
class Tls:
    """PEM files. Without any: the system's authorities, no certificate of our own."""

    authorities: Path | None = None
    certificate: Path | None = None  # and key: what we show to a server that asks
    key: Path | None = None
    server_name: str | None = None  # that its certificate must name, if it is not the target's

    def credentials(self) -> grpc.ChannelCredentials:
        authorities, key, certificate = (
            None if path is None else path.read_bytes() for path in (self.authorities, self.key, self.certificate)
        )
        return grpc.ssl_channel_credentials(authorities, key, certificate)


class _Caller:
    """What both clients know: where to, which model, how long."""

    def __init__(
        self,
        target: str,
        model_name: str,
        timeout_s: float = 30.0,
        *,
        version: str = "",
        attempts: int = ATTEMPTS,
        tls: Tls | None = None,
        token: str | None = None,
    ) -> None:
        """target: HOST:PORT, `dns:///NAME:PORT` of many servers, or a list, `ipv4:HOST:PORT,HOST:PORT`.
        timeout_s: of each request, its attempts included. attempts: 1 to 5.
        version: empty for the one that is served by default.
        token: sent with each call as a bearer token; without TLS everyone on the way can read it.
        """
        if not 1 <= attempts <= ATTEMPTS:
            raise ValueError(f"attempts is {attempts}; expected 1 to {ATTEMPTS}")
        self._target, self._name, self._version, self._timeout_s = target, model_name, version, timeout_s
        self._tls = tls
        self._options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.per_rpc_retry_buffer_size", LARGEST_RETRIED_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_time_ms", 1000 * KEEPALIVE_SECONDS),
            ("grpc.keepalive_timeout_ms", 1000 * KEEPALIVE_TIMEOUT_SECONDS),
            ("grpc.dns_min_time_between_resolutions_ms", 1000 * RESOLVE_SECONDS),
            ("grpc.service_config", _service_config(attempts)),
        ]
        if tls is not None and tls.server_name is not None:
            self._options.append(("grpc.ssl_target_name_override", tls.server_name))
        self._call: dict[str, Any] = {"timeout": timeout_s}
        if token is not None:
            self._call["metadata"] = (("authorization", f"Bearer {token}"),)
        self._model: Model | None = None
        self._channel = self._open()
        self._stub = GRPCInferenceServiceStub(self._channel)

    def _open(self) -> Any:
        raise NotImplementedError

    def _metadata_request(self) -> oip.ModelMetadataRequest:
        return oip.ModelMetadataRequest(name=self._name, version=self._version)


class Client(_Caller):
    def _open(self) -> Any:
        if self._tls is None:
            return grpc.insecure_channel(self._target, self._options)
        return grpc.secure_channel(self._target, self._tls.credentials(), self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def model(self) -> Model:
        """Asked for once."""
        if self._model is None:
            self._model = messages.model(
                self._stub.ModelMetadata(self._metadata_request(), **self._call), self._version
            )
        return self._model

    def predict(self, source: Source | Sequence[Source], **asked: Unpack[Asked]) -> Answer:
        """The answer to all rows, in as many requests as the server's limit needs.

        Raises InvalidInput, OSError for a file, grpc.RpcError.
        """
        return messages.joined(self.answers(_pieces(inputs.rows(source, self.model()), self.model()), **asked))

    def answers(self, sources: Iterable[Source | Sequence[Source]], **asked: Unpack[Asked]) -> Iterator[Answer]:
        """An answer to each source, in order, a few requests ahead; each must fit into one request."""
        model = self.model()
        calls = deque[Any]()
        try:
            for source in sources:
                message = messages.request(model, self._version, inputs.rows(source, model), asked)
                calls.append(self._stub.ModelInfer.future(message, **self._call))
                if len(calls) == IN_FLIGHT:
                    yield messages.answer(calls.popleft().result())
            while calls:
                yield messages.answer(calls.popleft().result())
        finally:
            for call in calls:
                call.cancel()


class AsyncClient(_Caller):
    """As Client, on asyncio's event loop; make it inside a coroutine."""

    def _open(self) -> Any:
        if self._tls is None:
            return grpc.aio.insecure_channel(self._target, options=self._options)
        return grpc.aio.secure_channel(self._target, self._tls.credentials(), options=self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def model(self) -> Model:
        """Asked for once."""
        if self._model is None:
            self._model = messages.model(
                await self._stub.ModelMetadata(self._metadata_request(), **self._call), self._version
            )
        return self._model

    async def predict(self, source: Source | Sequence[Source], **asked: Unpack[Asked]) -> Answer:
        """The answer to all rows, in as many requests as the server's limit needs.

        Raises InvalidInput, OSError for a file, grpc.RpcError.
        """
        model = await self.model()
        rows = await asyncio.to_thread(inputs.rows, source, model)  # files and pictures take a while
        return messages.joined([answer async for answer in self.answers(_pieces(rows, model), **asked)])

    async def answers(
        self, sources: Iterable[Source | Sequence[Source]], **asked: Unpack[Asked]
    ) -> AsyncIterator[Answer]:
        """An answer to each source, in order, a few requests ahead; each must fit into one request."""
        model = await self.model()
        calls = deque[Any]()
        try:
            for source in sources:
                rows = await asyncio.to_thread(inputs.rows, source, model)
                calls.append(self._stub.ModelInfer(messages.request(model, self._version, rows, asked), **self._call))
                if len(calls) == IN_FLIGHT:
                    yield messages.answer(await calls.popleft())
            while calls:
                yield messages.answer(await calls.popleft())
        finally:
            for call in calls:
                call.cancel()


def _pieces(rows: Any, model: Model) -> Iterator[Any]:
    """As many rows as fit into a request, each."""
    return (rows[start : start + model.max_batch_rows] for start in range(0, len(rows), model.max_batch_rows))


def _service_config(attempts: int) -> str:
    """Backoff is exponential with gRPC's own jitter, and ends with the call's deadline."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if attempts > 1:
        policy = {
            "maxAttempts": attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": [{}], "retryPolicy": policy}]
    return json.dumps(config)
