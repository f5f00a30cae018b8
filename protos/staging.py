"""What is written beside its final place: held while its writer lives, swept once the writer was killed."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

YOUNG_S = 60.0  # a writer that has made its name has locked it by then


def name(target: Path, kind: str) -> Path:
    """A new name beside `target`, after sweeping what killed writers of the same target have left."""
    for path in target.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(target.name + kind)}[0-9a-f]{{8}}", path.name):
            _remove_unless_held(path)
    return target.with_name(f".{target.name}{kind}{secrets.token_hex(4)}")


def replace_within(directory: Path, file: str, data: bytes) -> None:
    """Writes one file of a directory of which every file counts: beside it, since within it would be one too many for a
    moment, then renamed over the old one. Raises OSError; then nothing has changed.
    """
    beside = name(directory.absolute(), ".file-")
    try:
        with beside.open("xb") as opened, held(beside):
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        beside.replace(directory / file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Locks a file or folder that is being filled. The kernel lets go of it when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is ever swept
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_unless_held(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # another writer was faster, or it is not ours to remove
    try:
        if time.time() - os.fstat(descriptor).st_mtime < YOUNG_S:
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass  # its writer lives
    finally:
        os.close(descriptor)
