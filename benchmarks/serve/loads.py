"""What is measured on each server: closed loops, an open loop, many requests at once, SIGTERM while it answers."""

import asyncio
import contextlib
import math
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serve import client, generator
from benchmarks.serve.client import Outcome
from benchmarks.serve.contenders import Contender, Kind
from benchmarks.serve.processes import machine_cpu_s
from benchmarks.serve.server import Server


@dataclass(frozen=True)
class Load:
    """A closed loop."""

    parallel: int
    rows: int  # of a request


CLOSED = {"1": Load(1, 1), "8": Load(8, 1), "32": Load(32, 1), "4 × 8": Load(4, 8)}
PEAK = "32"  # whose rate counts as a server's peak
OPEN, AT_ONCE, SIGTERM = "open loop", "at once", "SIGTERM"
IN_FLIGHT = 16  # calls when SIGTERM comes
AT_ONCE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Durations:
    closed_s: float = 4.0
    warm_up_s: float = 0.7
    in_process_s: float = 1.5  # of each batch size
    open_s: float = 8.0
    interrupt_s: float = 1.0  # before SIGTERM
    patience_s: float = 10.0  # with what should end after it
    at_once: int = 512
    rate: float | None = None  # of the open loop; None: half of a peak that is measured


QUICK = Durations(
    closed_s=0.4, warm_up_s=0.1, in_process_s=0.3, open_s=1.0, interrupt_s=0.3, patience_s=2.0, at_once=32, rate=20.0
)

Measurement = dict[str, Any]


def steps(contender: Contender) -> list[str]:
    """A natural set-up is below the rate of the open loop: its queue would only grow."""
    open_loop = [] if contender.kind is Kind.NATURAL else [OPEN]
    return [*CLOSED, *open_loop, AT_ONCE, SIGTERM]


def measure(server: Server, step: str, durations: Durations, rate: float, seed: int) -> Measurement:
    """rate: of the open loop, in requests a second. SIGTERM comes last: the server is gone then."""
    if step in CLOSED:
        return closed(server, CLOSED[step], durations)
    if step == OPEN:
        return open_loop(server, client.at_random(rate, durations.open_s, seed)) | {"rate": rate}
    if step == AT_ONCE:
        return at_once(server, durations.at_once)
    return sigterm(server, durations.interrupt_s, durations.patience_s)


def closed(server: Server, load: Load, durations: Durations) -> Measurement:
    """The number of requests is fixed when the loop begins, so that no work is left undone when it ends."""
    answer = server.verify(load.parallel, load.rows)
    arguments = (server.address, server.contender.protocol, server.body(load.rows), answer, load.parallel)
    count = load.parallel
    while (warm_up := generator.closed_loop(*arguments, count)).seconds < durations.warm_up_s:
        count = max(2 * count, math.ceil(durations.warm_up_s * count / warm_up.seconds))
    if not warm_up.answered:
        raise RuntimeError(f"{server.contender.name}: none of {count} requests was answered")
    turns = max(1, round(durations.closed_s * count / warm_up.seconds / load.parallel))
    with _watched(server) as used:
        result = generator.closed_loop(*arguments, turns * load.parallel)
    server.verify(load.parallel, load.rows)
    images = result.answered * load.rows
    return {
        "requests": turns * load.parallel,
        "images": images,
        "failed": result.failed,
        "images_per_s": images / result.seconds,
        "cpu_s_per_image": used["cpu_s"] / images,
        "p50_s": float(np.quantile(result.latencies, 0.5)),
        "p99_s": float(np.quantile(result.latencies, 0.99)),
        **used,
    }


def open_loop(server: Server, dues: list[float]) -> Measurement:
    server.verify(1, 1)

    async def run() -> Outcome:
        async with client.connect(server.address, server.contender.protocol) as call:
            return await client.open_loop(call, server.body(1), dues)

    with _watched(server) as used:
        outcome = asyncio.run(run())
    return _checked(server, outcome) | {"late_p99_s": float(np.quantile(outcome.late, 0.99))} | used


def at_once(server: Server, count: int) -> Measurement:
    server.verify(1, 1)

    async def run() -> Outcome:
        async with client.connect(server.address, server.contender.protocol, timeout_s=AT_ONCE_TIMEOUT_S) as call:
            return await client.at_once(call, server.body(1), count)

    return _checked(server, asyncio.run(run()))


def sigterm(server: Server, after_s: float, patience_s: float) -> Measurement:
    """What became of the calls in flight, of the process, and of those that it started."""
    server.verify(1, 1)

    async def run() -> Outcome:
        async with client.connect(server.address, server.contender.protocol, timeout_s=patience_s) as call:
            return await client.interrupted(call, server.body(1), IN_FLIGHT, after_s, server.process.terminate)

    measurement = _checked(server, asyncio.run(run()))
    start = time.perf_counter()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(patience_s)
    took = time.perf_counter() - start
    exit_code = server.process.poll()
    deadline = start + patience_s
    while (left := server.tree.alive()) and time.perf_counter() < deadline and exit_code is not None:
        time.sleep(0.05)
    return measurement | {"exit_code": exit_code, "exit_s": took, "left_behind": len(left)}


def _checked(server: Server, outcome: Outcome) -> Measurement:
    for answer in outcome.answers:
        server.check(answer, slice(0, 1))
    answered, failed = ([round(seconds, 6) for seconds in calls] for calls in (outcome.answered, outcome.failed))
    return {"answered": answered, "failed": failed, "codes": dict(outcome.codes)}


@contextlib.contextmanager
def _watched(server: Server) -> Iterator[Measurement]:
    """Fills what it yields when it ends. elsewhere: the share of this machine that went to neither server nor load."""
    used: Measurement = {}
    cpu_s, machine_s, load_s, start = server.tree.cpu_s(), machine_cpu_s(), _load_cpu_s(), time.perf_counter()
    yield used
    used["cpu_s"] = server.tree.cpu_s() - cpu_s
    used["load_cpu_s"] = _load_cpu_s() - load_s
    seconds = time.perf_counter() - start
    elsewhere_s = machine_cpu_s() - machine_s - used["cpu_s"] - used["load_cpu_s"]
    used["elsewhere"] = elsewhere_s / seconds / (os.cpu_count() or 1)
    used["resident_bytes"] = server.tree.resident_bytes()


def _load_cpu_s() -> float:
    """Of this process and the generators that it started."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
