"""Files as they appear in a folder, each once it is whole."""

from pathlib import Path

from PIL import Image

Mark = tuple[int, int]  # size and time of the last change, nanoseconds


class Folder:
    """Pictures and .npy files; those that are there at the first look are new as well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._suffixes = {*Image.registered_extensions(), ".npy"}
        self._settling: dict[Path, Mark] = {}
        self._taken: dict[Path, Mark] = {}

    def look(self) -> list[Path]:
        """Files that have not changed since the last look, oldest first; each once, and again after a change.

        A writer may have paused: whoever cannot read a file waits for its next change. Raises OSError for the folder.
        """
        now: dict[Path, Mark] = {}
        for path in self._path.iterdir():
            if path.suffix.lower() not in self._suffixes or path.name.startswith("."):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # renamed or removed since it was listed
            now[path] = (status.st_size, status.st_mtime_ns)
        self._taken = {path: mark for path, mark in self._taken.items() if path in now}
        whole = [path for path, mark in now.items() if self._settling.get(path) == mark != self._taken.get(path)]
        self._settling = now
        self._taken |= {path: now[path] for path in whole}
        return sorted(whole, key=lambda path: (now[path][1], path.name))
