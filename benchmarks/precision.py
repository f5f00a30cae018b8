"""What reduced precision does to answers: error on test rows in fp32 and below it, on this CPU, as the server computes.

Four independent networks and four points of a curve, of digits and of Fashion-MNIST, as in `benchmarks.robustness`;
trained once a seed. Prints a table last, and writes it with every figure to --record.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import robustness
from benchmarks.record import spread, write_record
from benchmarks.reproduce import experiment
from protos.validate import validate
from serving.combine import combine
from serving.errors import StartupError
from serving.networks import device, members, probe
from serving.networks.cpu import usable_cpus
from serving.networks.executor import Executor

BATCH = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16", help="beside fp32")
    parser.add_argument("--only", nargs="+", choices=["digits", "fashion"], default=["digits", "fashion"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", default="data", help="where torchvision keeps data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    found: dict[str, list[dict[str, float]]] = {}
    for name in options.only:
        for seed in range(options.seeds):
            config = robustness.config(robustness.SETTINGS[name], seed, options.root)
            folder = experiment.run(config, options.out / name / f"seed-{seed}")
            with np.load(folder / "test.npz") as test:
                for method in ("ind", "curve"):
                    figures = compare(folder / method, test["inputs"], test["targets"], options.precision)
                    found.setdefault(f"{name}, {method}", []).append(figures)
    lines = table(found, options.precision)
    print("\n".join(lines))
    if options.record:
        write_record(options.record, "benchmarks.precision", "\n".join(lines), found=found, precision=options.precision)
    return 0


def compare(directory: Path, inputs: NDArray[np.uint8], labels: NDArray[np.int64], precision: str) -> dict[str, float]:
    (exact_BC, _), (rounded_BC, served) = (answers(directory, inputs, which) for which in ("fp32", precision))
    exact_B, rounded_B = exact_BC.argmax(1), rounded_BC.argmax(1)
    return {
        "rows": len(labels),
        "error": float(np.mean(exact_B != labels)),
        "error_below": float(np.mean(rounded_B != labels)),
        "another_class": float(np.mean(exact_B != rounded_B)),
        "served": served,
        "largest_difference": float(np.abs(exact_BC - rounded_BC).max()),
    }


def answers(directory: Path, inputs: NDArray[np.uint8], precision: str) -> tuple[NDArray[np.float64], bool]:
    """[B, C]: the members' mean; and whether a server would start, its probe rows being near enough."""
    stored = validate(directory)
    manifest = stored.manifest
    engine = device.choose("cpu", "openvino", precision, usable_cpus())
    executor = Executor(engine, members.load(stored, engine), len(manifest.class_labels))
    served = True
    try:
        probe.check(stored, executor, engine, probe.PRECISION_TOLERANCE)
    except StartupError:
        served = False
    temperatures_M1 = np.array([member.temperature for member in manifest.members])[:, None]
    probs = []
    for start in range(0, len(inputs), BATCH):
        rows = inputs[start : start + BATCH]
        mask_MB = np.ones((len(manifest.members), len(rows)), np.bool_)
        logits_MBC = executor.run(rows, mask_MB)
        probs.append(combine(logits_MBC, mask_MB, temperatures_M1, np.full(len(rows), manifest.temperature)).probs_BC)
    engine.close()
    return np.concatenate(probs), served


def table(found: dict[str, list[dict[str, float]]], precision: str) -> Sequence[str]:
    """Mean ± standard deviation over seeds; the last column the largest of any."""
    lines = [
        f"| mean of four networks | test rows | error %, fp32 | error %, {precision} | difference, points "
        f"| rows with another class, % | largest difference of a probability | seeds that a server takes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in found.items():
        columns: dict[str, Any] = {key: np.array([figures[key] for figures in seeds]) for key in seeds[0]}
        cells = [
            f"{int(columns['rows'][0]):,}",
            spread(100 * columns["error"], 2),
            spread(100 * columns["error_below"], 2),
            spread(100 * (columns["error_below"] - columns["error"]), 2),
            spread(100 * columns["another_class"], 2),
            f"{columns['largest_difference'].max():.3f}",
            f"{int(columns['served'].sum())} of {len(seeds)}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
