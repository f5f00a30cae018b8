"""Closed loops by a compiled generator, h2load of nghttp2: HTTP/2 for gRPC, HTTP/1.1 for the rest.

It runs on the same cores as the server, for everybody. It takes every gRPC answer for a success, since gRPC's status
is in the trailers of a 200; but a failed call has no message, so that the bytes that came tell how many did not fail.
"""

import asyncio
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serve import client
from benchmarks.serve.peers import Body

H2LOAD = shutil.which("h2load")
GRPC_PREFIX_BYTES = 5  # of every message: a flag and its length


@dataclass(frozen=True)
class Closed:
    """What came of a closed loop."""

    answered: int
    failed: int
    seconds: float  # from the first request to the last answer
    latencies: list[float]  # of all calls, in seconds


def closed_loop(address: str, protocol: str, body: Body, answer: bytes, parallel: int, count: int) -> Closed:
    """`count` requests by so many connections, each of which waits for its answer before it asks again.

    answer: to this request, for its size. Without h2load our own client asks.
    """
    if H2LOAD is None:
        return asyncio.run(_by_our_client(address, protocol, body, parallel, count))
    with tempfile.TemporaryDirectory() as folder:
        data, log = Path(folder, "body"), Path(folder, "log")
        is_grpc = protocol == "oip-grpc"
        data.write_bytes((struct.pack(">?I", False, len(body.data)) if is_grpc else b"") + body.data)
        command = [H2LOAD, "-n", str(count), "-c", str(parallel), "-m", "1", "-d", str(data), "--log-file", str(log)]
        command += ["-H", f"content-type: {body.content_type}", *(["-H", "te: trailers"] if is_grpc else ["--h1"])]
        done = subprocess.run([*command, f"http://{address}{body.path}"], capture_output=True, text=True, check=True)
        rows = [[int(field) for field in line.split()] for line in log.read_text().splitlines()]
    if is_grpc:
        received = re.search(r"space savings [^)]*\), \S+ \((\d+)\) data", done.stdout)
        if received is None:
            raise RuntimeError(f"h2load said nothing of the bytes that came: {done.stdout}")
        answered = int(received[1]) // (GRPC_PREFIX_BYTES + len(answer))
    else:
        answered = sum(status == 200 for _, status, _ in rows)
    seconds = (max(start + took for start, _, took in rows) - min(start for start, _, _ in rows)) / 1e6
    return Closed(answered, count - answered, seconds, [took / 1e6 for _, _, took in rows])


async def _by_our_client(address: str, protocol: str, body: Body, parallel: int, count: int) -> Closed:
    async with client.connect(address, protocol, connections=parallel) as call:
        start = asyncio.get_running_loop().time()
        outcome = await client.closed_loop(call, body, parallel, count)
        seconds = asyncio.get_running_loop().time() - start
    return Closed(len(outcome.answered), len(outcome.failed), seconds, [*outcome.answered, *outcome.failed])


def version() -> str:
    if H2LOAD is None:
        return "benchmarks/serve/client.py"
    return subprocess.run([H2LOAD, "--version"], capture_output=True, text=True, check=True).stdout.strip()
