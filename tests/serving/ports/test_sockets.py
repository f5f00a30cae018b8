"""The end of a port: what the kernel has connected already is accepted, what comes later is refused."""

import asyncio
import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.ports import rest, sockets

WAITING = 5
SILENCE_S = 0.05  # of an attempt on loopback, which is otherwise answered at once
TIMEOUT_S = 10.0


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Nobody accepts yet."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as server:
        server.settimeout(TIMEOUT_S)
        yield server


def connect(listening: socket.socket, timeout_s: float = TIMEOUT_S) -> socket.socket:
    return socket.create_connection(listening.getsockname()[:2], timeout_s)


def answer_and_read(listening: socket.socket, client: socket.socket) -> tuple[bytes, bytes]:
    """What the server reads from the connection that is next in the queue, and the client from its own."""
    accepted, _ = listening.accept()
    with accepted:
        accepted.settimeout(TIMEOUT_S)
        request = accepted.recv(16)
        accepted.sendall(b"answer")
        return request, client.recv(16)


async def settle() -> None:
    """Everything that can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_connections_that_wait_to_be_accepted_are_answered_before_the_port_ends(
    listening: socket.socket,
) -> None:
    with ExitStack() as opened:
        clients = [opened.enter_context(closing(connect(listening))) for _ in range(WAITING)]
        for client in clients:
            client.sendall(b"request")
        stopping = asyncio.create_task(sockets.stop_listening(listening.getsockname()[1], TIMEOUT_S))
        for client in clients:
            await settle()
            assert not stopping.done()
            assert answer_and_read(listening, client) == (b"request", b"answer")
        await asyncio.wait_for(stopping, TIMEOUT_S)
        with pytest.raises(ConnectionRefusedError):
            connect(listening)


async def test_no_connection_begins_once_the_queue_was_seen_empty(listening: socket.socket) -> None:
    await sockets.empty(listening)
    with pytest.raises(TimeoutError):
        connect(listening, SILENCE_S)


async def test_a_handshake_under_way_ends_well_though_none_begins(listening: socket.socket) -> None:
    # The kernel leaves the server's half of it undone until the client sends something.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    with connect(listening) as client:
        await sockets.empty(listening)
        client.sendall(b"request")
        assert answer_and_read(listening, client) == (b"request", b"answer")


async def test_what_nobody_accepts_does_not_hold_up_the_end(listening: socket.socket) -> None:
    with connect(listening):
        await asyncio.wait_for(sockets.stop_listening(listening.getsockname()[1], limit_s=0.01), TIMEOUT_S)
    with pytest.raises(ConnectionRefusedError):
        connect(listening)


async def test_the_http_port_answers_who_waits_to_be_accepted_when_it_ends() -> None:
    async def answer(_: Request) -> Response:
        return Response("answer")

    server = rest.Server(Starlette(routes=[Route("/", answer)]), "127.0.0.1", 0, None)
    await server.start()
    try:
        with ExitStack() as opened:
            clients = []
            for _ in range(WAITING):  # before the event loop can accept
                client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
                opened.callback(client.close)
                client.request("GET", "/")
                clients.append(client)
            await server.stop_listening()
            for client in clients:
                response = await asyncio.to_thread(client.getresponse)
                assert response.read() == b"answer"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
    finally:
        await server.stop()
