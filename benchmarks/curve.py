"""Policy `curve` against exact recalibration: at random t, the server's network and the one that training would make.

The server interpolates BatchNorm statistics and temperatures between a grid of members; exact is a pass over the
training rows at t, and a temperature fitted there. Each seed is a run of recipe `digits` (curve alone); seeds that are
there already are not run again. Prints a table last, and writes it with everything behind it to --record.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import spread, write_record
from protos.ensemble_pb2 import EnsembleManifest
from protos.ensemble_pb2 import Member as Entry
from protos.stored_ensemble import StoredEnsemble
from serving.combine import member_probs
from serving.networks.combined import Combined
from serving.networks.curve import CurveGrid
from serving.networks.engines.onnx_cpu import OnnxCpu
from trainer import evaluate, export, finished_run, member
from trainer.evaluate import Quality
from trainer.finished_run import FinishedRun
from trainer.temperature import temper

GRIDS = (3, 5, 11, 21, 31, 61)
FINEST = 61  # every other grid is a part of it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--points", type=int, default=200, help="random t a seed")
    parser.add_argument("--out", type=Path, default=Path("runs/curve"))
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    found = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        folder = options.out / f"seed-{seed}"
        result = folder / f"policy-curve-{options.points}.json"
        if not (folder / "results.json").exists():
            command = [sys.executable, "-m", "trainer", "run", "digits", "--seed", str(seed), "--out", str(folder)]
            subprocess.run([*command, "--only", "curve"], check=True, stdout=subprocess.DEVNULL)
        if not result.exists():
            measured = compare(finished_run.load(folder), options.points, seed)
            result.write_text(json.dumps(measured, indent=1) + "\n")
        found[seed] = json.loads(result.read_text())
        print(f"seed {seed} done", flush=True)

    lines = table(list(found.values()), options.points)
    print("\n".join(lines))
    if options.record:
        write_record(options.record, "benchmarks.curve", "\n".join(lines), rows=found)
    return 0


def compare(run: FinishedRun, points: int, seed: int) -> dict[str, Any]:
    """Test quality at each t: of the exact network, and of the server's with each grid."""
    curve, network, splits = run.curve(), run.network, run.splits
    test = splits.measured["test"]
    inputs, labels = test.inputs.cpu().numpy(), test.labels
    ts = np.random.default_rng(seed).random(points).tolist()
    names = member.control_point_names(curve)

    def exact(t: float) -> Tensor:
        terms = dict(zip(names, curve.coefficients(t), strict=True))
        origin = member.CurvePoint(curve=member.KINDS[curve.kind], bends=curve.bends, t=t)
        made = member.finish(network, splits, "exact", origin, terms, curve.point(t))
        return temper(made.logits["test"], made.temperature)

    exact_probs = [exact(t) for t in ts]
    finest = member.curve_points(network, splits, curve, FINEST)
    engine = OnnxCpu(1)
    combined = Combined(served(run, finest), names, engine)
    measured: dict[str, Any] = {"t": ts, "exact": [asdict(evaluate.quality(probs, labels)) for probs in exact_probs]}
    for count in GRIDS:
        grid = CurveGrid(served(run, finest[:: (FINEST - 1) // (count - 1)]))
        rows = []
        for t, wanted in zip(ts, exact_probs, strict=True):
            point = grid.at(t)
            logits = combined.network(inputs, combined.feeds(point.coefficients, point.statistics))
            probs = torch.from_numpy(member_probs(logits, point.temperature))
            rows.append(
                asdict(evaluate.quality(probs, labels))
                | {"disagreeing": float((probs.argmax(1) != wanted.argmax(1)).double().mean())}
            )
        measured[str(count)] = rows
    return measured


def served(run: FinishedRun, members: Sequence[member.Member]) -> StoredEnsemble:
    """What a directory with these members would hold."""
    stored = run.ensembles["curve"]
    manifest = EnsembleManifest()
    manifest.CopyFrom(stored.manifest)
    del manifest.members[:]
    for made in members:
        entry = Entry(id=made.id, statistics=made.id, temperature=made.temperature)
        assert isinstance(made.origin, member.CurvePoint)
        entry.curve_point.CopyFrom(made.origin)
        for name, coefficient in made.terms.items():
            entry.terms.add(weight_set=name, coefficient=coefficient)
        manifest.members.append(entry)
    statistics = {made.id: export.statistic_tensors(stored.graph, made.statistics) for made in members}
    return StoredEnsemble(manifest, stored.graph, stored.weight_sets, statistics)


def asdict(quality: Quality) -> dict[str, float]:
    return {"error": quality.error, "nll": quality.nll, "ece": quality.ece}


def columns(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def table(results: Sequence[dict[str, Any]], points: int) -> list[str]:
    """Over seeds: the mean over t of each seed, and the largest difference at any t of any seed."""
    lines = [
        f"| grid | test error at {points} random t, % | more than exact, points | largest | test NLL "
        f"| more than exact | largest | rows with another class, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    exact = [columns(result["exact"]) for result in results]
    cells = [spread([100 * e["error"].mean() for e in exact], 2), "", "", spread([e["nll"].mean() for e in exact], 4)]
    lines.append(f"| exact | {' | '.join(cells)} | | | |")
    for count in GRIDS:
        mine = [columns(result[str(count)]) for result in results]
        error = [100 * (m["error"] - e["error"]) for m, e in zip(mine, exact, strict=True)]
        nll = [m["nll"] - e["nll"] for m, e in zip(mine, exact, strict=True)]
        cells = [
            f"{count} members",
            spread([100 * m["error"].mean() for m in mine], 2),
            spread([e.mean() for e in error], 3),
            f"{max(abs(e).max() for e in error):.2f}",
            spread([m["nll"].mean() for m in mine], 4),
            spread([n.mean() for n in nll], 5),
            f"{max(abs(n).max() for n in nll):.4f}",
            spread([100 * m["disagreeing"].mean() for m in mine], 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
