"""Where a request's microseconds go: a real server of one-row requests, sampled from outside by py-spy.

    python -m benchmarks.profile [--parallel 1] [--tree CHECKOUT] [--record benchmarks/records/DATE-profile]

Prints a table of CPU time by stage, and one of the server's own histograms, which it fills before anything samples it;
writes both with a flame graph to --record. --tree: another checkout's server, for a picture of before. CPU time of a
request is the kernel's count for the process; samples say how it divides. py-spy sees threads that have run Python, not
the few of gRPC's core. The networks are those of `benchmarks.serve`: eight PreResNet-20.
"""

import argparse
import asyncio
import functools
import math
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.profile import flame, phases, stacks
from benchmarks.record import write_record
from benchmarks.serve import client, ensemble, generator, processes
from benchmarks.serve.peers import Body, oip
from tests.server_process import ServerProcess

SAMPLES_PER_SECOND = 200
SPY_STARTS_S = 8.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parallel", type=int, default=1, help="requests in flight")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[2], help="the server's checkout")
    parser.add_argument("--out", type=Path, default=Path("runs/profile"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists() and not (spy := Path(shutil.which("py-spy") or "")).is_file():
        parser.error("py-spy is missing: pip install py-spy")
    models = options.out / "ensemble"
    if not models.exists():
        ensemble.write(models)

    found = measure(spy, options.tree.resolve(), models.resolve(), options.parallel, options.seconds)
    per_sample = found.cpu_s / found.sampled.total()
    seconds = {name: count * per_sample for name, count in stacks.by_stage(found.sampled).items()}
    lines = [*table(seconds, found.cpu_s, found.rate, options.parallel), "", *found.by_histograms]
    print("\n".join(lines))
    folder = options.record or options.out
    requests = f"one-row requests, {options.parallel} in parallel, eight PreResNet-20"
    title = f"{requests}: {1e6 * found.cpu_s:.0f} µs of CPU time each"
    flame.draw(folder / "flame.png", found.sampled, 1e6 * per_sample, title)
    if options.record:
        write_record(
            folder,
            "benchmarks.profile",
            "\n".join(lines),
            seconds_a_request=seconds,
            cpu_s=found.cpu_s,
            rate=found.rate,
        )
    return 0


@dataclass(frozen=True)
class Measured:
    sampled: stacks.Stacks
    cpu_s: float  # a request; of the load that sampling slows, as is the rate
    rate: float  # requests/s
    by_histograms: list[str]  # a table, of a load that nothing slows


def measure(spy: Path, tree: Path, models: Path, parallel: int, seconds: float) -> Measured:
    """Two loads of `seconds` each."""
    with ServerProcess(models / "thalweg", root=tree) as server:
        body = oip.request(ensemble.rows(1))
        answer = asyncio.run(ask(server.grpc, body))
        load = functools.partial(generator.closed_loop, server.grpc, "oip-grpc", body, answer, parallel)
        warm = load(100)
        unwatched = phases.scrape(server.metrics)
        load(math.ceil(seconds * 100 / warm.seconds))
        by_histograms = list(phases.table(unwatched, phases.scrape(server.metrics)))

        count = math.ceil((seconds + SPY_STARTS_S) * 100 / warm.seconds)
        pid = server.process.pid
        before = processes.cpu_s(pid)
        with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory() as folder:
            loading = pool.submit(load, count)
            raw = Path(folder, "stacks")
            arguments = ["record", "--format", "raw", "--function", "--nonblocking", "--rate", str(SAMPLES_PER_SECOND)]
            arguments += ["--duration", str(seconds), "--output", str(raw), "--pid", str(pid)]
            subprocess.run([spy, *arguments], check=True, capture_output=True)
            if loading.done():
                raise RuntimeError("the load ended before the samples; the machine was not quiet")
            loaded = loading.result()
            cpu_s = (processes.cpu_s(pid) - before) / count
            sampled = stacks.parse(raw.read_text().splitlines())
            return Measured(sampled, cpu_s, loaded.answered / loaded.seconds, by_histograms)


async def ask(address: str, body: Body) -> bytes:
    async with client.connect(address, "oip-grpc") as call:
        return await call(body)


def table(seconds: dict[str, float], cpu_s: float, rate: float, parallel: int) -> list[str]:
    lines = [f"| CPU time of a request, {parallel} in parallel | µs | % |", "|---|---|---|"]
    lines += [f"| {name} | {1e6 * each:.0f} | {100 * each / cpu_s:.1f} |" for name, each in seconds.items()]
    lines += [f"| the process, as the kernel counts it | {1e6 * cpu_s:.0f} | 100 |", "", f"{rate:.0f} requests/s."]
    return lines


if __name__ == "__main__":
    sys.exit(main())
