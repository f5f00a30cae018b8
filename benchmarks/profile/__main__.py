"""Where a request's microseconds go: a real server of one-row requests, sampled from outside by py-spy.

    python -m benchmarks.profile [--parallel 1] [--tree CHECKOUT] [--record benchmarks/records/DATE-profile]

Prints a table of CPU time by stage, and writes it with a flame graph to --record. --tree: another checkout's server,
for a picture of before. CPU time of a request is the kernel's count for the process; samples say how it divides. py-spy
sees threads that have run Python, not the few of gRPC's core. The networks are those of `benchmarks.serve`: eight
PreResNet-20.
"""

import argparse
import asyncio
import functools
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.profile import flame, stacks
from benchmarks.record import write_record
from benchmarks.serve import client, ensemble, generator
from benchmarks.serve.peers import Body, oip
from benchmarks.serve.processes import Tree

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

    sampled, cpu_s, rate = measure(spy, options.tree.resolve(), models.resolve(), options.parallel, options.seconds)
    per_sample = cpu_s / sampled.total()
    seconds = {name: count * per_sample for name, count in stacks.by_stage(sampled).items()}
    lines = table(seconds, cpu_s, rate, options.parallel)
    print("\n".join(lines))
    folder = options.record or options.out
    title = (
        f"one-row requests, {options.parallel} in parallel, eight PreResNet-20: {1e6 * cpu_s:.0f} µs of CPU time each"
    )
    flame.draw(folder / "flame.png", sampled, 1e6 * per_sample, title)
    if options.record:
        write_record(folder, "benchmarks.profile", "\n".join(lines), seconds_a_request=seconds, cpu_s=cpu_s, rate=rate)
    return 0


def measure(spy: Path, tree: Path, models: Path, parallel: int, seconds: float) -> tuple[stacks.Stacks, float, float]:
    """Stacks of `seconds`; CPU seconds a request, and requests a second, of the load, which sampling slows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "serving",
        str(models / "thalweg"),
        "--grpc-port",
        str(port),
        "--metrics-port",
        "0",
    ]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    server = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        if not server.stdout.readline().startswith("ready "):
            raise RuntimeError(f"the server of {tree} did not start")
        address, body = f"127.0.0.1:{port}", oip.request(ensemble.rows(1))
        answer = asyncio.run(ask(address, body))
        load = functools.partial(generator.closed_loop, address, "oip-grpc", body, answer, parallel)
        warm = load(100)
        count = math.ceil((seconds + SPY_STARTS_S) * 100 / warm.seconds)
        process = Tree(server.pid)
        before = process.cpu_s()
        with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory() as folder:
            loading = pool.submit(load, count)
            raw = Path(folder, "stacks")
            arguments = ["record", "--format", "raw", "--function", "--nonblocking", "--rate", str(SAMPLES_PER_SECOND)]
            arguments += ["--duration", str(seconds), "--output", str(raw), "--pid", str(server.pid)]
            subprocess.run([spy, *arguments], check=True, capture_output=True)
            if loading.done():
                raise RuntimeError("the load ended before the samples; the machine was not quiet")
            loaded = loading.result()
            cpu_s = (process.cpu_s() - before) / count
            return stacks.parse(raw.read_text().splitlines()), cpu_s, loaded.answered / loaded.seconds
    finally:
        server.terminate()
        server.wait()


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
