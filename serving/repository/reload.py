"""Brings the models that are served in line with the folders: at start, while it watches them, and by request.

A new version is read, loaded and warmed while the old one serves, then takes its place; one that is refused changes
nothing. What changes on disk is acted on once two looks in a row agree: a folder that is being filled is not read in
the middle, and a name that is gone for the moment of a rename is not removed.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse

from protos.ensemble_pb2 import EnsembleManifest
from protos.stored_ensemble import StoredEnsemble
from protos.validate import InvalidEnsemble, IsTrusted
from serving.errors import LoadFailed, StartupError, UnknownModel
from serving.networks.memory import give_back
from serving.repository import folders
from serving.repository.folders import Fingerprint, Folder
from serving.repository.loader import Loader
from serving.repository.models import Repository, ServedModel
from serving.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass
class Slot:
    """What is known of a folder."""

    folder: Folder
    name: str  # of the manifest, once it could be read
    version: str
    served: str | None = None  # SHA-256 of the manifest that was read
    refused: Fingerprint | None = None
    state: str = "LOADING"  # READY, LOADING or UNAVAILABLE
    reason: str = ""


class Reloader:
    def __init__(
        self,
        arguments: Sequence[Path],
        loader: Loader,
        repository: Repository,
        checks: health.HealthServicer,
        metrics: Metrics,
        is_trusted: IsTrusted | None = None,
    ) -> None:
        self._arguments = arguments
        self._loader = loader
        self._repository = repository
        self._checks = checks
        self._metrics = metrics
        self._is_trusted = is_trusted
        self._slots: dict[Path, Slot] = {}
        self._read: list[tuple[Slot, Fingerprint, StoredEnsemble]] = []  # at start, not loaded yet
        self._unloaded: set[str] = set()  # by request, until they are loaded by request
        self._last_look: dict[Path, Fingerprint] = {}
        self._last_complaint = ""
        self._changing = asyncio.Lock()  # one change at a time
        self._closing: set[asyncio.Task[None]] = set()

    def read(self, lenient: bool) -> list[EnsembleManifest]:
        """All there are, announced as not yet ready. Raises InvalidEnsemble, StartupError for one that is refused;
        lenient: only if all are.
        """
        error: InvalidEnsemble | StartupError | None = None
        for folder in folders.find(self._arguments):
            slot = self._slots[folder.path] = _new_slot(folder)
            seen = folder.fingerprint()
            try:
                stored = self._read_folder(slot)
            except (InvalidEnsemble, StartupError) as caught:
                if not lenient:
                    raise
                error = caught
                self._refuse(slot, seen, str(caught))
                continue
            self._last_look[folder.path] = seen
            self._read.append((slot, seen, stored))
            self._repository.announce(slot.name, slot.version)
        if error is not None and not self._read:
            raise error
        return [stored.manifest for _, _, stored in self._read]

    async def load_all(self, lenient: bool) -> None:
        """What was read, one after the other. Raises StartupError for one that is refused; lenient: if all are."""
        async with self._changing:
            error: StartupError | None = None
            while self._read:
                slot, seen, stored = self._read.pop(0)  # each let go of once its members are made
                try:
                    await self._serve(slot, stored)
                except StartupError as caught:
                    if not lenient:
                        raise
                    error = caught
                    self._refuse(slot, seen, str(caught))
                    self._repository.remove(slot.name, slot.version)
                del stored
                await asyncio.to_thread(give_back)
            if error is not None and not any(slot.served for slot in self._slots.values()):
                raise error

    async def watch(self, seconds: float) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.look()
            except Exception:  # an error of ours, which must not take down what is served
                logger.exception("watching failed, and goes on")

    async def look(self) -> None:
        """Looks once, and acts on what has changed and then stayed the same since the last look."""
        async with self._changing:
            try:
                seen = await asyncio.to_thread(_look, self._arguments)
            except (InvalidEnsemble, OSError) as error:
                # An argument that is gone or empty is more likely a volume that is not mounted than a wish.
                if str(error) != self._last_complaint:
                    logger.error("the folders cannot be watched, nothing changes: %s", error)
                self._last_complaint = str(error)
                return
            self._last_complaint = ""
            before, self._last_look = self._last_look, {folder.path: print_ for folder, print_ in seen.items()}
            paths = self._last_look.keys()
            for path in [path for path in self._slots if path not in paths and path not in before]:
                slot = self._slots.pop(path)
                await self._remove(slot, "removed")
                if slot.name in self._unloaded:
                    self._repository.withdraw(slot.name, slot.version)
            for folder, fingerprint in seen.items():
                slot = self._slots.get(folder.path) or _new_slot(folder)
                settled = before.get(folder.path) == fingerprint
                if settled and slot.name not in self._unloaded and self._differs(slot, fingerprint):
                    self._slots[folder.path] = slot
                    await self._replace(slot, fingerprint)

    async def load(self, name: str) -> None:
        """Every version of a name that the folders hold. Raises UnknownModel, LoadFailed."""
        async with self._changing:
            self._unloaded.discard(name)
            try:
                seen = await asyncio.to_thread(_look, self._arguments)
            except (InvalidEnsemble, OSError) as error:
                raise LoadFailed(f"failed to load '{name}': {error}") from None
            wanted = []
            for folder, fingerprint in seen.items():
                slot = self._slots.get(folder.path) or _new_slot(folder)
                if name == slot.name:
                    self._slots[folder.path] = slot
                    wanted.append((slot, fingerprint))
            if not wanted:
                raise UnknownModel(f"failed to load '{name}': no folder of this server holds it")
            for slot, fingerprint in wanted:
                slot.refused = None  # who asks wants it tried again
                if self._differs(slot, fingerprint):
                    await self._replace(slot, fingerprint)
            if refused := [slot for slot, _ in wanted if slot.refused is not None]:
                raise LoadFailed(f"failed to load '{name}': {refused[0].reason}")

    async def unload(self, name: str) -> None:
        """Every version of a name, until it is loaded by request. Raises UnknownModel."""
        async with self._changing:
            slots = [slot for slot in self._slots.values() if slot.name == name and slot.served is not None]
            if not slots:
                raise UnknownModel(f"failed to unload '{name}': it is not loaded")
            self._unloaded.add(name)
            for slot in slots:
                await self._remove(slot, "unloaded")
                self._repository.announce(name, slot.version, "unloaded")

    def index(self) -> list[Slot]:
        return sorted(self._slots.values(), key=lambda slot: (slot.name, slot.version))

    async def close(self) -> None:
        """Waits for replaced models' last requests."""
        await asyncio.gather(*self._closing)

    @staticmethod
    def _differs(slot: Slot, seen: Fingerprint) -> bool:
        """From what is served, by the manifest, which has every file's hash; from what was refused, by any file."""
        if slot.served == seen.manifest_sha256:
            slot.refused, slot.reason = None, ""  # what was refused has been taken back
            return False
        return slot.refused != seen

    async def _replace(self, slot: Slot, seen: Fingerprint) -> None:
        """Reads and loads beside what is served; or refuses, and nothing changes but the slot's reason."""
        try:
            await self._serve(slot, await asyncio.to_thread(self._read_folder, slot))
            await asyncio.to_thread(give_back)
        except (InvalidEnsemble, StartupError) as error:
            self._refuse(slot, seen, str(error))
        except Exception:
            logger.exception("cannot load path=%s", slot.folder.path)
            self._refuse(slot, seen, "internal error")

    def _read_folder(self, slot: Slot) -> StoredEnsemble:
        stored = slot.folder.read(self._is_trusted)
        name, version = stored.manifest.name, stored.manifest.version
        for other in self._slots.values():
            if other is not slot and (other.name, other.version) == (name, version) and other.state != "UNAVAILABLE":
                both = f"'{other.folder.path}' and '{slot.folder.path}'"
                raise StartupError(f"{both} are version '{version}' of '{name}'; expected one of them")
        if slot.served is None:
            slot.name, slot.version = name, version
        return stored

    async def _serve(self, slot: Slot, stored: StoredEnsemble) -> None:
        model = await self._loader.load(stored)
        ensemble = model.ensemble
        before = (slot.name, slot.version) if slot.served else None
        retired = [self._repository.add(model)]
        slot.name, slot.version = ensemble.name, ensemble.version
        slot.served, slot.refused, slot.state, slot.reason = stored.manifest_sha256, None, "READY", ""
        if before not in (None, (slot.name, slot.version)):
            retired.append(self._repository.remove(*before))
            await self._tell(before[0])
        for old in retired:
            self._retire(old)
        self._metrics.loads.labels("ok").inc()
        await self._tell(ensemble.name)

    def _refuse(self, slot: Slot, seen: Fingerprint, reason: str) -> None:
        slot.refused, slot.reason = seen, reason
        if slot.served is None:
            slot.state = "UNAVAILABLE"
        self._metrics.loads.labels("refused").inc()
        kept = None if slot.served is None else slot.version
        logger.error("refused path=%s kept_version=%s reason=%s", slot.folder.path, kept, reason)

    async def _remove(self, slot: Slot, reason: str) -> None:
        if slot.served is not None:
            self._retire(self._repository.remove(slot.name, slot.version))
            logger.info("no longer served model=%s version=%s reason=%s", slot.name, slot.version, reason)
        slot.served, slot.refused, slot.state, slot.reason = None, None, "UNAVAILABLE", reason
        await self._tell(slot.name)

    def _retire(self, model: ServedModel | None) -> None:
        """Closes it after its last request."""
        if model is not None:
            task = asyncio.create_task(model.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _tell(self, name: str) -> None:
        serving = bool(self._repository.versions(name))
        await self._checks.set(name, HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING)


def _new_slot(folder: Folder) -> Slot:
    return Slot(folder, folder.name or folder.path.name, folder.version or "")


def _look(arguments: Sequence[Path]) -> dict[Folder, Fingerprint]:
    return {folder: folder.fingerprint() for folder in folders.find(arguments)}
