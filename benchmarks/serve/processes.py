"""What a server and everything that it started use, from /proc: CPU time of those that have ended too, and memory."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class _Process:
    pid: int
    state: str
    parent: int
    session: int
    cpu_s: float  # its own, and that of its children that have ended and were waited for


def adopt_orphans() -> None:
    """From now on a process below this one whose parent ends becomes a child of this one, so that it stays counted."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Tree:
    """A process that leads a session of its own, and all that it started, however they have detached themselves.

    Only one such tree at a time: what this process has adopted is taken for a part of it.
    """

    def __init__(self, root: int) -> None:
        self.root = root

    def cpu_s(self) -> float:
        """User and system time since the start, of everything."""
        return sum(process.cpu_s for process in self._members())

    def resident_bytes(self) -> int:
        """A page that n of all processes share counts 1/n in each of them (PSS)."""
        return sum(_proportional_bytes(process.pid) for process in self._members())

    def alive(self) -> list[int]:
        return [process.pid for process in self._members() if process.state not in "ZX"]

    def kill(self) -> None:
        """Whatever is left of it; afterwards nothing is, but for the root, which waits for its Popen."""
        while alive := self.alive():
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
        self._reap()

    def _reap(self) -> None:
        for process in self._members():
            if process.parent == os.getpid() and process.pid != self.root:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, 0)

    def _members(self) -> list[_Process]:
        everything = list(_processes())
        children: dict[int, list[_Process]] = {}
        for process in everything:
            children.setdefault(process.parent, []).append(process)
        # What this process itself started beside the tree, such as a load generator, shares its session.
        members = [each for each in children.get(os.getpid(), ()) if each.session != os.getsid(0)]
        for member in members:  # grows on the way
            members += children.get(member.pid, ())
        return members


def machine_cpu_s() -> float:
    """CPU time that this machine has given to anybody, or that its host has kept from it, since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_SECOND


def cpu_s(pid: int) -> float:
    """User and system time since the start, of one process and of its children that have ended."""
    return next(process.cpu_s for process in _processes() if process.pid == pid)


def _processes() -> Iterator[_Process]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name, in brackets, may hold anything.
                state, parent, _, session, *rest = (folder / "stat").read_text().rpartition(") ")[2].split()
                cpu_s = sum(map(int, rest[7:11])) / _TICKS_PER_SECOND
                yield _Process(int(folder.name), state, int(parent), int(session), cpu_s)


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
