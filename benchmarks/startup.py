"""From exec to the `ready` line, phase by phase: eight independent networks, and fifty points of a curve.

Every start is a server of its own. Cases take turns, --repetitions times; phases end at lines of the server's log,
whose times are to the millisecond. The files are in the page cache. Prints a table of medians last, and writes it
with every start behind it to --record.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from benchmarks import compact
from benchmarks.record import write_record
from benchmarks.serve import ensemble

# The event that ends each phase. The settings, logged first of all, are a value without a name.
PHASES = {"imports": "", "read and verified": "read", "networks": "networks made", "probe": "probe"}
LAST = "warm-up, ports"
ATTEMPT_SECONDS = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=50, help="of the curve")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4], help="of the curve's networks")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/startup"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    cases = {"8 networks": [str(independent(options.out / "independent"))]}
    for width in options.widths:
        directory = curve(options.out / f"curve-{options.members}-x{width}", width, options.members)
        for memory in ("fast", "compact"):
            label = f"curve of {options.members}, width {width}, {memory}"
            cases[label] = [str(directory), "--memory", memory]
    found: dict[str, list[dict[str, float]]] = {label: [] for label in cases}
    for _ in range(options.repetitions):
        for label, arguments in cases.items():
            found[label].append(start(arguments))
            print(label, {phase: round(seconds, 3) for phase, seconds in found[label][-1].items()}, flush=True)
    lines = table(found)
    print("\n".join(lines))
    if options.record:
        write_record(options.record, "benchmarks.startup", "\n".join(lines), starts=found)
    return 0


def independent(out: Path) -> Path:
    if not (out / "thalweg").exists():
        ensemble.write(out)
    return out / "thalweg"


def curve(directory: Path, width: int, members: int) -> Path:
    if not directory.exists():
        compact.write(directory.with_name(f"one-x{width}"), directory, 20, width, members, probe_rows=16)
    return directory


def start(arguments: list[str]) -> dict[str, float]:
    """Seconds of each phase, and of all, of a server that is stopped again."""
    command = [sys.executable, "-m", "serving", *arguments, "--grpc-port", "0", "--metrics-port", "0"]
    began = time.time()
    process = subprocess.Popen(
        [*command, "--log-format", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    ready = process.stdout.readline().startswith("ready ")
    whole = time.time() - began
    process.terminate()
    _, log = process.communicate(timeout=ATTEMPT_SECONDS)
    if not ready:
        raise RuntimeError(f"the server did not start: {log}")
    return phases(began, whole, log)


def phases(began: float, whole: float, log: str) -> dict[str, float]:
    """began: by the wall clock. log: JSON, a line each. A phase whose line is missing took no time."""
    ends: dict[str, float] = {}
    for line in map(json.loads, log.splitlines()):
        ends.setdefault(line["event"], datetime.fromisoformat(line["time"]).timestamp() - began)
    seconds, last = {}, 0.0
    for phase, event in PHASES.items():
        end = ends.get(event, last)
        seconds[phase], last = end - last, end
    return seconds | {LAST: whole - last, "ready": whole}


def table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    names = [*PHASES, LAST, "ready"]
    lines = [f"| seconds, medians | {' | '.join(names)} | slowest start |", f"|{'---|' * (len(names) + 2)}"]
    for label, starts in found.items():
        cells = [f"{statistics.median(start[name] for start in starts):.2f}" for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} | {max(start['ready'] for start in starts):.2f} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
