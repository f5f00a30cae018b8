"""Which ensembles there are on disk: an argument is an ensemble directory, or a repository of them.

REPO/NAME/manifest.json or REPO/NAME/VERSION/manifest.json; the manifest says the name and the version, and a folder
that says another is refused. Names that begin with a dot are skipped: writers stage beside the final place.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from protos.stored_ensemble import StoredEnsemble
from protos.validate import MANIFEST, InvalidEnsemble, IsTrusted, Violation, read_manifest, validate


@dataclass(frozen=True)
class Fingerprint:
    """What a folder looks like from outside."""

    manifest_sha256: str  # of the manifest, which has every other file's hash; empty where it cannot be read
    listing: tuple[tuple[str, int, int, int], ...]  # of each file: path, inode, size, time of the last change in ns


@dataclass(frozen=True)
class Folder:
    """An ensemble directory, and what its place in a repository says of it; None: nothing."""

    path: Path
    name: str | None = None
    version: str | None = None

    def read(self, is_trusted: IsTrusted | None = None) -> StoredEnsemble:
        """Raises InvalidEnsemble, also where the folders' names are not the manifest's."""
        stored = validate(self.path, is_trusted)
        for field in ("name", "version"):
            said, found = getattr(self, field), getattr(stored.manifest, field)
            if said not in (None, found):
                message = f"the {field} in '{self.path}' is '{found}'; its folder in the repository is called '{said}'"
                raise InvalidEnsemble(Violation.BAD_NAME, message)
        return stored

    def fingerprint(self) -> Fingerprint:
        """Equal for two looks at the same files; the kernel keeps the time of the last change, nobody can set it."""
        try:
            manifest_sha256 = hashlib.sha256(read_manifest(self.path)).hexdigest()
        except InvalidEnsemble:
            manifest_sha256 = ""
        listing = []
        for root, _, names in os.walk(self.path):
            for name in names:
                path = Path(root, name)
                try:
                    status = path.lstat()
                except OSError:
                    continue  # gone meanwhile
                relative = path.relative_to(self.path).as_posix()
                listing.append((relative, status.st_ino, status.st_size, status.st_ctime_ns))
        return Fingerprint(manifest_sha256, tuple(sorted(listing)))


def find(arguments: Iterable[Path]) -> list[Folder]:
    """Those of all arguments. Raises InvalidEnsemble for one that holds none."""
    found: list[Folder] = []
    for argument in arguments:
        if not argument.is_dir():
            raise InvalidEnsemble(Violation.NO_DIRECTORY, f"'{argument}' is not a directory")
        if folders := list(_in(argument)):
            found += folders
        else:
            message = f"'{argument}' holds no {MANIFEST}, no NAME/{MANIFEST} and no NAME/VERSION/{MANIFEST}"
            raise InvalidEnsemble(Violation.NO_MANIFEST, message)
    return found


def _in(argument: Path) -> Iterator[Folder]:
    if _is_ensemble(argument):
        yield Folder(argument)
        return
    for folder in _subfolders(argument):
        if _is_ensemble(folder):
            yield Folder(folder, folder.name)
        else:
            yield from (
                Folder(version, folder.name, version.name) for version in _subfolders(folder) if _is_ensemble(version)
            )


def _is_ensemble(folder: Path) -> bool:
    return os.path.lexists(folder / MANIFEST)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError as error:
        message = f"'{folder}' cannot be read: {error.strerror}"
        raise InvalidEnsemble(Violation.UNREADABLE, message) from error
