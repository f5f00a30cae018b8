"""The process's own memory: how much is resident, and giving back what loading has left free."""

import ctypes
import functools
import re
from pathlib import Path


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def give_back() -> None:
    """Free memory to the operating system, where the C library can: glibc keeps what it has once been given."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def return_large_blocks() -> None:
    """From now on glibc gives blocks of 256 KiB or more back as soon as they are free, not when it sees fit."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    m_mmap_threshold = -3  # <malloc.h>
    if mallopt is not None:
        mallopt(m_mmap_threshold, 256 * 1024)
