"""Who may ask: bearer tokens from a file, one a line, looked at again when it changes."""

import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from serving.errors import StartupError

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

LOOK_SECONDS = 1.0
HEALTH = "/grpc.health.v1.Health/"  # probes have no token, and learn nothing


class Tokens:
    """The file is the truth: a token that leaves it is refused a second later, and without the file every one is."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        count_refusal: Callable[[], object] = lambda: None,
    ) -> None:
        self._path = path
        self._count_refusal = count_refusal
        self._clock = clock
        self._looked = clock()
        self._signature = self._stat()
        try:
            self._digests = _digests(path)
        except OSError as error:
            raise StartupError(f"the tokens in '{path}' cannot be read: {error.strerror}") from None
        if not self._digests:
            raise StartupError(f"'{path}' holds no token; expected one a line")

    def allow(self, authorization: str | None) -> bool:
        """authorization: the header, `Bearer TOKEN`."""
        self._look()
        token = bearer(authorization)
        asked = digest(token)
        # Every token is compared, in a time that tells nothing of it.
        found = [hmac.compare_digest(asked, known) for known in self._digests]
        allowed = bool(token) and any(found)
        if not allowed:
            self._count_refusal()
        return allowed

    def _look(self) -> None:
        if self._clock() - self._looked < LOOK_SECONDS:
            return
        self._looked = self._clock()
        if (signature := self._stat()) == self._signature:
            return
        self._signature = signature
        try:
            self._digests = _digests(self._path)
        except OSError as error:
            self._digests = []
            logger.error("every request is refused: the tokens in '%s' cannot be read: %s", self._path, error.strerror)
        else:
            logger.info("tokens read again path='%s' tokens=%d", self._path, len(self._digests))

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def header(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """`authorization`. Of several the first, whoever asks: a token that is checked is the one that counts."""
    first = next((value for name, value in metadata if name == "authorization"), None)
    return first if isinstance(first, str) else None


def bearer(authorization: str | None) -> str:
    """The token in a header `Bearer TOKEN`; empty if it holds none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digests(path: Path) -> list[bytes]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [digest(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def digest(token: str) -> bytes:
    """Of one length, whatever the token's."""
    return hashlib.sha256(token.encode()).digest()


class TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses a call without a token before anything of it is read."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

        async def refuse(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            message = "expected the header 'authorization: Bearer TOKEN' with a token that this server knows"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, message)

        # On the wire calls of every kind begin alike, and this kind waits for no message.
        self._refusal: Handler = grpc.stream_stream_rpc_method_handler(refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        details: grpc.HandlerCallDetails,
    ) -> Handler:
        if details.method.startswith(HEALTH):
            return await continuation(details)
        if self._tokens.allow(header(details.invocation_metadata)):
            return await continuation(details)
        return self._refusal
