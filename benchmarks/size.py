"""How much memory a replica needs: docs/operations.md, "Size", held against servers that load and answer full batches.

Each case is a server of its own on an ensemble of random PreResNets: M members from K weight sets of P parameters.
Peaks are the kernel's (VmHWM): other programs do not move them. Prints a table last, and writes it to --record.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import compact
from protos import manifest_file
from protos.stored_ensemble import StoredEnsemble
from protos.validate import validate
from serving.client import Client
from tests.server_process import ServerProcess
from tests.tiny_ensemble import write as write_tiny

MIB = 2**20
BASE_MIB, LOADING = 120, 8  # of the process; weight sets that loading holds in passing
BATCH_ROWS, REQUESTS = 16, 2
# Kind, depth, width, members.
CASES = [
    ("independent", 20, 1, 4),
    ("independent", 20, 4, 4),
    ("independent", 20, 4, 16),
    ("independent", 20, 8, 8),
    ("curve", 20, 4, 50),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/size"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    tiny = options.out / "tiny"
    write_tiny(tiny)
    rows = [measure("tiny", tiny, "fast", options.threads) | {"members": 4, "weight_sets": 4}]
    for kind, depth, width, members in CASES:
        directory = options.out / f"{kind}-{depth}-x{width}-{members}"
        if not directory.exists():
            write(kind, directory, depth, width, members)
        for memory in ("fast", "compact") if kind == "curve" else ("fast",):
            row = measure(directory.name, directory, memory, options.threads)
            rows.append(row | {"members": members, "weight_sets": 3 if kind == "curve" else members})
            print(rows[-1], flush=True)
    lines = table(rows)
    print("\n".join(lines))
    if options.record:
        from benchmarks.record import write_record

        write_record(options.record, "benchmarks.size", "\n".join(lines), rows=rows)
    return 0


def write(kind: str, directory: Path, depth: int, width: int, members: int) -> None:
    one = directory.with_name(f"{directory.name}-one")
    curve = directory if kind == "curve" else directory.with_name(f"{directory.name}-curve")
    compact.write(one, curve, depth, width, members)
    if kind != "curve":
        write_independent(directory, validate(one), members)


def write_independent(directory: Path, one: StoredEnsemble, members: int) -> None:
    """Members of a weight set each, which differ by little: values change no size."""
    manifest = type(one.manifest)()
    manifest.CopyFrom(one.manifest)
    del manifest.members[:]
    for i in range(members):
        member = manifest.members.add(id=f"m{i}", statistics="s0", temperature=1.0)
        member.terms.add(weight_set=f"w{i}", coefficient=1.0)
    weight_sets = {
        f"w{i}": {name: tensor + np.float32(1e-3 * i) for name, tensor in one.weight_sets["w0"].items()}
        for i in range(members)
    }
    graph = one.graph.model.SerializeToString()
    manifest_file.write(directory, manifest, graph, weight_sets, {"s0": one.statistics["s0"]})


def measure(name: str, directory: Path, memory: str, threads: int) -> dict[str, Any]:
    """Bytes: of a weight set, at most until ready, at most in all, and now, after full batches."""
    weights = sum(path.stat().st_size for path in (directory / "weights").iterdir())
    count = len(list((directory / "weights").iterdir()))
    arguments = ("--threads", str(threads), "--memory", memory, "--max-batch-rows", str(BATCH_ROWS))
    with ServerProcess(directory, *arguments) as server:
        loading = status(server)["VmHWM"]
        model = "tiny" if name == "tiny" else "curve"
        with Client(server.grpc, model, timeout_s=120) as client:
            shape = (BATCH_ROWS, 4) if name == "tiny" else (BATCH_ROWS, 3, 32, 32)
            rows = np.zeros(shape, np.float32 if name == "tiny" else np.uint8)
            for _ in range(REQUESTS):
                client.predict(rows)
        after = status(server)
    found = {"weight_set": weights // count, "loading": loading, "peak": after["VmHWM"], "after": after["VmRSS"]}
    return {"case": name, "memory": memory} | found


def status(server: ServerProcess) -> dict[str, int]:
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return {name: 1024 * int(size) for name, size in re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", text, re.MULTILINE)}


def predicted(row: dict[str, Any]) -> float:
    """The formula, in bytes."""
    networks = row["members"] if row["memory"] == "fast" else row["weight_sets"]
    return BASE_MIB * MIB + (2 * networks + row["weight_sets"] + LOADING) * row["weight_set"]


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| ensemble | `--memory` | members | weight sets | of a weight set, MiB | most while loading, MiB "
        "| most in all | after full batches | formula | most in all / formula |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = [f"{row[name] / MIB:.1f}" for name in ("weight_set", "loading", "peak", "after")]
        cells = [row["case"], row["memory"], str(row["members"]), str(row["weight_sets"]), *sizes]
        lines.append(f"| {' | '.join(cells)} | {predicted(row) / MIB:.0f} | {row['peak'] / predicted(row):.2f} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
