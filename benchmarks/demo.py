"""The whole road in one command: train, export, serve, ask. `make demo` runs it.

Trains two networks on real handwritten digits, finds a curve between them, gathers a fast geometric ensemble,
exports both ensembles, starts a server on each and asks it about the test images over gRPC.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from serving.client import Answer, Client
from tests.server_process import ServerProcess

BINS = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(highlight=False)

    start = time.monotonic()
    command = [sys.executable, "-m", "trainer", "run", "digits", "--seed", str(options.seed), "--out", str(options.out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    trained = time.monotonic()

    with np.load(options.out / "test.npz") as file:
        inputs, targets = file["inputs"], file["targets"]
    rows = {}
    with ServerProcess(options.out / "fge") as server, Client(server.grpc, "digits") as client:
        rows["FGE"] = client.predict(inputs)
    with ServerProcess(options.out / "curve") as server, Client(server.grpc, "digits") as client:
        rows["single network"] = client.predict(inputs, members=[0])  # t = 0: the first endpoint
        rows["endpoint pair"] = client.predict(inputs, members=[0, client.model().members - 1])
        rows["curve"] = client.predict(inputs)
        rows["curve, a random member a row"] = client.predict(inputs, policy="random")

    table = Table(title=f"{len(targets)} test images, asked over gRPC", title_justify="left")
    table.add_column("answered by")
    for head in ("members", "error %", "NLL", "Brier", "ECE"):
        table.add_column(head, justify="right")
    order = ("single network", "endpoint pair", "FGE", "curve", "curve, a random member a row")
    nll = {}
    for name in order:
        error, nll[name], brier, ece = quality(rows[name], targets)
        table.add_row(name, str(rows[name].members_run), f"{100 * error:.2f}", f"{nll[name]:.4f}",
                      f"{brier:.4f}", f"{ece:.4f}")  # fmt: skip
    console.print(table)
    for name in ("FGE", "curve"):
        change = 100 * (nll[name] / nll["single network"] - 1)
        console.print(f"{name}: NLL {change:+.1f} % against the single network", soft_wrap=True)

    profile = json.loads((options.out / "results.json").read_text())
    ends = 100 * max(profile["curve"]["test_error"][0], profile["curve"]["test_error"][-1])
    console.print(
        f"greatest test error on the curve {100 * max(profile['curve']['test_error']):.2f} %, "
        f"at its ends {ends:.2f} %, on the straight segment {100 * max(profile['segment']['test_error']):.2f} %",
        soft_wrap=True,
    )
    console.print(f"trained and exported in {trained - start:.0f} s, served in {time.monotonic() - trained:.0f} s")
    console.print(f"ensemble directories  {options.out / 'fge'}  {options.out / 'curve'}", soft_wrap=True)
    console.print(f"report                {options.out / 'report.html'}", soft_wrap=True)
    console.print(f"serve one yourself    .venv/bin/thalweg-serve {options.out / 'curve'}", soft_wrap=True)
    console.print(
        f"and ask it            .venv/bin/thalweg-predict {options.out / 'example.png'} --model digits", soft_wrap=True
    )
    return 0


def quality(answer: Answer, targets: np.ndarray) -> tuple[float, float, float, float]:
    """Error, NLL, Brier and ECE, computed from what came over the wire, apart from the trainer's own code."""
    probs = answer.probs.astype(np.float64)
    confidence, right = probs.max(1), probs.argmax(1) == targets
    edges = np.clip(np.ceil(confidence * BINS), 1, BINS)
    ece = sum(
        abs(right[edges == b].mean() - confidence[edges == b].mean()) * (edges == b).mean() for b in np.unique(edges)
    )
    nll = -np.log(probs[np.arange(len(targets)), targets]).mean()
    brier = ((probs - np.eye(probs.shape[1])[targets]) ** 2).sum(1).mean()
    return float(1 - right.mean()), float(nll), float(brier), float(ece)


if __name__ == "__main__":
    sys.exit(main())
