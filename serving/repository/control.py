"""Model control by clients: what there is, load, unload; only on a server that was started with `--allow-control`.

A request names a model. It never names a file, and brings no configuration: what can be loaded is what the server's
own folders hold.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from protos import open_inference_grpc_pb2 as oip
from serving.errors import InvalidRequest, NotOffered
from serving.repository.reload import Reloader


class Control:
    """reloader: None where control is not allowed; every call then raises NotOffered."""

    def __init__(self, reloader: Reloader | None) -> None:
        self._reloader = reloader
        self._changes: set[asyncio.Task[None]] = set()

    def index(self, message: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        """Every folder, `ready`: that answers."""
        reloader = self._allowed()
        _check_repository(message.repository_name)
        index = oip.RepositoryIndexResponse.ModelIndex
        return oip.RepositoryIndexResponse(
            models=[
                index(name=slot.name, version=slot.version, state=slot.state, reason=slot.reason)
                for slot in reloader.index()
                if slot.state == "READY" or not message.ready
            ]
        )

    async def load(self, message: oip.RepositoryModelLoadRequest) -> oip.RepositoryModelLoadResponse:
        """Reads the folders again. Raises UnknownModel, LoadFailed, InvalidRequest."""
        reloader = self._allowed()
        _check(message)
        await self._to_the_end(reloader.load(message.model_name))
        return oip.RepositoryModelLoadResponse()

    async def unload(self, message: oip.RepositoryModelUnloadRequest) -> oip.RepositoryModelUnloadResponse:
        """Requests that have begun are answered. Raises UnknownModel, InvalidRequest."""
        reloader = self._allowed()
        _check(message, "unload_dependents")  # tritonclient always says it; our models have none
        await self._to_the_end(reloader.unload(message.model_name))
        return oip.RepositoryModelUnloadResponse()

    async def _to_the_end(self, change: Coroutine[Any, Any, None]) -> None:
        """A client that goes away leaves nothing half done."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # told here, if nobody waits any more
        await asyncio.shield(task)

    def _allowed(self) -> Reloader:
        if self._reloader is None:
            raise NotOffered("clients may not control this server's models; it was started without --allow-control")
        return self._reloader


def _check(message: oip.RepositoryModelLoadRequest | oip.RepositoryModelUnloadRequest, *accepted: str) -> None:
    if not message.model_name:
        # KServe's dialect of these calls has the model in field 1, which is the repository's name here.
        raise InvalidRequest("the model's name, field 2, is empty; this server speaks Triton's form of the call")
    _check_repository(message.repository_name)
    for parameter in message.parameters:
        if parameter not in accepted:
            raise InvalidRequest(f"unknown parameter '{parameter}'; a model is loaded as it lies in its folder")


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequest(f"unknown repository '{name}'; this server has one, without a name")
