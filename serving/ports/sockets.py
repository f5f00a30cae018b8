"""The end of a port, in two steps: no new connections, then none at all. gRPC itself can only take both at once."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


def stop_listening(port: int) -> None:
    """From now on the kernel refuses connections to the port, so proxies and clients try another server; those that are
    there live on.
    """
    for opened in _sockets(port):
        if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            opened.shutdown(socket.SHUT_RD)


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


def _sockets(port: int) -> Iterator[socket.socket]:
    """Ours on that port. gRPC opens and keeps them; a copy of the descriptor reaches the same socket."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # gone meanwhile
            if not entry.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as opened:
                if opened.getsockname()[1:2] == (port,):
                    yield opened
