"""The end of a port, in two steps: no new connections, then none at all. gRPC itself can only take both at once."""

import asyncio
import contextlib
import os
import socket
import struct
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

EMPTY_LIMIT_SECONDS = 1.0  # whoever does not accept must not hold up the end
EMPTY_POLL_SECONDS = 0.001
HANDSHAKE_SECONDS = 0.002  # round trips within a cluster; each attempt that begins meanwhile is a second late

SO_ATTACH_FILTER = 26  # Linux; the module socket does not name it
# The first segment of a handshake has SYN and no ACK. In the kernel's words: load the byte of the flags,
# mask, if equal drop (keep 0 bytes), else keep all. What else comes belongs to handshakes under way.
DROP_NEW = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
QUEUED_AT = 24  # tcpi_unacked in struct tcp_info: of a socket that listens, how many connections wait to be accepted


async def stop_listening(port: int, limit_s: float = EMPTY_LIMIT_SECONDS) -> None:
    """From now on the kernel refuses connections to the port, so proxies and clients try another server; those that are
    there live on. Returns once it is so: `empty` says what that waits for.
    """
    for opened in _sockets(port):
        if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            await empty(opened, limit_s)
            opened.shutdown(socket.SHUT_RD)


async def empty(listening: socket.socket, limit_s: float = EMPTY_LIMIT_SECONDS) -> None:
    """Lets no connection begin, and waits until all that have begun are accepted, for about limit_s at most. The kernel
    resets those that are not when the socket ends, and to a client they were connections: it may have sent its request.

    Attempts meanwhile meet silence. Clients repeat them after a second, and are refused if the socket has ended by
    then.
    """
    end = time.monotonic() + limit_s
    # First as things are, then without newcomers: that is a few milliseconds, in which few come.
    await _until_accepted(listening, end)
    program = array("B", b"".join(struct.pack("HBBI", *each) for each in DROP_NEW))
    with contextlib.suppress(OSError):  # a sandbox without filters: what comes after the last look is reset there
        listening.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(DROP_NEW), program.buffer_info()[0])
        )
    await asyncio.sleep(HANDSHAKE_SECONDS)
    await _until_accepted(listening, end)


async def _until_accepted(listening: socket.socket, end: float) -> None:
    while _queued(listening) and time.monotonic() < end:  # noqa: ASYNC110  # the kernel does not tell
        await asyncio.sleep(EMPTY_POLL_SECONDS)


def connections(port: int) -> int:
    """How many there are to the port."""
    return sum(_has_a_peer(opened) for opened in _sockets(port))


def disconnect(port: int) -> None:
    """Ends every connection to the port. A client sees UNAVAILABLE for what it has just sent, and asks elsewhere; of a
    gRPC server that stops while requests arrive it would see CANCELLED for some, which nobody retries.
    """
    for opened in _sockets(port):
        with contextlib.suppress(OSError):  # gone meanwhile, or the one that listened
            opened.shutdown(socket.SHUT_RDWR)


def _has_a_peer(opened: socket.socket) -> bool:
    try:
        opened.getpeername()
    except OSError:  # gone meanwhile, or the one that listened
        return False
    return True


def _queued(listening: socket.socket) -> int:
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, QUEUED_AT + 4)
    return int(struct.unpack_from("I", info, QUEUED_AT)[0])


def _sockets(port: int) -> Iterator[socket.socket]:
    """Ours on that port. gRPC opens and keeps them; a copy of the descriptor reaches the same socket."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # gone meanwhile
            if not entry.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as opened:
                if opened.getsockname()[1:2] == (port,):
                    yield opened
