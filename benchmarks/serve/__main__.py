"""Our server beside those that users would pick: one command to the tables, the picture and the record.

    python -m benchmarks.serve [--rounds 3] [--only NAME …] [--record benchmarks/records/DATE-serve]

Every server answers the same requests for the same eight networks (`ensemble.py`), alone on the machine while it is
measured, in alternating rounds; every configuration's answers are compared with the reference before and after it is
timed, and a wrong one ends the run. Load comes from h2load where that is installed (Debian: nghttp2-client). It and our
own client use the same cores as the server, for everybody. The peers are installed from PyPI first. What is
measured already under --out is not measured again, so that the run (35 minutes for three rounds) may be interrupted.

--quick takes some seconds a server, installs nothing, measures anew, and fails only on wrong answers. None of its
figures counts.
"""

import argparse
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.record import write_record
from benchmarks.serve import contenders, ensemble, environments, generator, loads, plot, table
from benchmarks.serve.contenders import Contender
from benchmarks.serve.processes import adopt_orphans
from benchmarks.serve.rounds import Bench
from benchmarks.serve.server import WrongAnswer


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.serve"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders, or all set-ups of a peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=loads.Durations.closed_s, help="of each closed loop")
    parser.add_argument("--quick", action="store_true", help="one short round of what is installed")
    parser.add_argument("--out", type=Path, default=Path("runs/serve"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args(arguments)
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # not without ending the server
    chosen = choose(contenders.find(options.out.absolute() / "environments"), options.only or [])
    missing = {} if options.quick else install(chosen)
    chosen = [each for each in chosen if each.environment is None or is_installed(each)]
    models = options.out / "ensemble"
    if not (models / "thalweg").exists():
        ensemble.write(models)
    out, count, durations = options.out, options.rounds, replace(loads.Durations(), closed_s=options.seconds)
    if options.quick:
        out, count, durations = options.out / "quick", 1, loads.QUICK
        shutil.rmtree(out, ignore_errors=True)
    bench = Bench(models, out, durations)
    try:
        bench.run(chosen, count)
    except WrongAnswer as error:
        print(f"wrong answer: {error}", file=sys.stderr)
        return 1
    rounds = bench.found(chosen, count)
    text = "\n".join([table.tables(chosen, rounds), *(f"\n{name}: not here. {why}" for name, why in missing.items())])
    print(text)
    plot.draw(out / "serve.png", chosen, rounds)
    if options.record:
        versions = {each.name: each.versions() for each in chosen}
        write_record(
            options.record,
            "benchmarks.serve",
            text,
            generator=generator.version(),
            cpu=cpu_name(),
            versions=versions,
            missing=missing,
            rounds=rounds,
        )
        shutil.copy(out / "serve.png", options.record)
    return 0


def choose(everybody: Sequence[Contender], names: Sequence[str]) -> list[Contender]:
    """Those that are named, by a whole name or else by what stands before the comma; all, if nothing is.

    Raises SystemExit.
    """
    chosen: list[Contender] = []
    for name in names:
        meant = [each for each in everybody if each.name == name] or [
            each for each in everybody if each.name.partition(",")[0] == name
        ]
        if not meant:
            raise SystemExit(f"there is no '{name}'; expected some of {'; '.join(each.name for each in everybody)}")
        chosen += meant
    return chosen or list(everybody)


def install(chosen: Sequence[Contender]) -> dict[str, str]:
    """The peers' environments. Returns those that cannot be had, with the reason."""
    missing = {}
    for contender in chosen:
        if contender.environment:
            try:
                environments.prepare(contender.environment, contender.packages)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                missing[contender.name] = str(error)
                print(f"{contender.name}: {error}", flush=True)
    return missing


def is_installed(contender: Contender) -> bool:
    return contender.environment is not None and environments.is_ready(contender.environment, contender.packages)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())
