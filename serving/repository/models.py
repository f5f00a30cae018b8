"""The models that this server has, by name and version. Lives on the event loop."""

import asyncio
import contextlib
import re
from collections.abc import Iterable, Iterator

from serving.batcher import Batcher
from serving.ensemble import Ensemble
from serving.errors import NotReady, UnknownModel
from serving.near_duplicates import NearDuplicates


class ServedModel:
    """An ensemble and its own queue. A request holds it from first to last, and what is replaced closes after that."""

    def __init__(self, ensemble: Ensemble, batcher: Batcher, near_duplicates: NearDuplicates | None = None) -> None:
        self.ensemble = ensemble
        self.batcher = batcher
        self.near_duplicates = near_duplicates
        self._holds = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._holds += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self._unused.set()

    async def close(self) -> None:
        """Once no request holds it. It must not be found any more."""
        await self._unused.wait()
        await self.batcher.stop()
        self.ensemble.close()


class Repository:
    """Latest by default, any version by request. A model is announced, then added; until then it is not ready."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedModel | str]] = {}  # by name and version; or why it is not ready
        self._latest: dict[str, ServedModel] = {}  # by name: every request asks
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def announce(self, name: str, version: str, why_not_ready: str = "still loading") -> None:
        self._models.setdefault(name, {}).setdefault(version, why_not_ready)

    def add(self, model: ServedModel) -> ServedModel | None:
        """From now on requests find it. Returns the one that it replaces, for the caller to close."""
        model.batcher.failure.add_done_callback(self._report)
        versions = self._models.setdefault(model.ensemble.name, {})
        replaced = versions.get(model.ensemble.version)
        versions[model.ensemble.version] = model
        self._choose_latest(model.ensemble.name)
        return replaced if isinstance(replaced, ServedModel) else None

    def remove(self, name: str, version: str) -> ServedModel | None:
        """No request finds it any more. Returns it, for the caller to close."""
        versions = self._models[name]
        removed = versions.pop(version)
        if not versions:
            del self._models[name]
        self._choose_latest(name)
        return removed if isinstance(removed, ServedModel) else None

    def withdraw(self, name: str, version: str) -> None:
        """What was announced, and is not there, will not come any more."""
        versions = self._models.get(name, {})
        if isinstance(versions.get(version), str):
            self.remove(name, version)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model; an empty version is the latest. Raises UnknownModel, NotReady."""
        versions = self._models.get(name, {})
        if not versions:
            raise UnknownModel(f"unknown model '{name}'; this server has {_quoted(sorted(self._models))}")
        if version and version not in versions:
            raise UnknownModel(
                f"unknown version '{version}' of '{name}'; this server has {_quoted(sorted(versions, key=age))}"
            )
        model = versions[version] if version else self._latest.get(name) or next(iter(versions.values()))
        if isinstance(model, str):
            raise NotReady(f"'{name}' is {model}")
        return model

    def matching(self, name: str, version: str) -> list[ServedModel]:
        """Those that answer: of all names if it is empty, of all versions if that is. Raises UnknownModel, NotReady."""
        if name:
            self.find(name, version)
        found = [(each, v) for each in ([name] if name else self._models) for v in self.versions(each)]
        return [self.find(each, v) for each, v in found if version in ("", v)]

    def versions(self, name: str) -> list[str]:
        """Those that answer, the latest last."""
        versions = self._models.get(name, {})
        return sorted((version for version in versions if isinstance(versions[version], ServedModel)), key=age)

    def _choose_latest(self, name: str) -> None:
        self._latest.pop(name, None)
        if versions := self.versions(name):
            model = self._models[name][versions[-1]]
            assert isinstance(model, ServedModel)
            self._latest[name] = model

    async def failed(self) -> None:
        """Raises what ended a batcher; nothing would be answered any more. Returns never."""
        await asyncio.shield(self._failure)

    def _report(self, failure: "asyncio.Future[None]") -> None:
        if not failure.cancelled() and (error := failure.exception()) and not self._failure.done():
            self._failure.set_exception(error)

    async def close(self) -> None:
        models = [model for versions in self._models.values() for model in versions.values()]
        self._models.clear()
        self._latest.clear()
        await asyncio.gather(*(model.close() for model in models if isinstance(model, ServedModel)))


def age(version: str) -> tuple[list[tuple[int, int, str]], str]:
    """The latest version has the greatest: runs of digits compare as numbers and come after letters; else as text.

    So 9 < 10, 1.9 < 1.10, beta < 1, 2026-11-23 < 2026-11-24, and 1.0 < 1.0-rc1: a longer one comes after.
    """
    parts = re.findall(r"[0-9]+|[A-Za-z]+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts], version


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
