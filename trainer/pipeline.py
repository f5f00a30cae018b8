"""The stages in order, one call each: start reading here."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protos import manifest_file
from trainer import atomic_file, batchnorm, connect, evaluate, export, fge, manifest, member, report, results, train
from trainer import data as data_sets
from trainer import network as networks
from trainer.config import Config
from trainer.curve import Curve
from trainer.data import Splits
from trainer.errors import OutputExists
from trainer.network import Network
from trainer.progress import Progress
from trainer.results import FgeTrace, Results
from trainer.seeding import seed_stage


@dataclass(frozen=True)
class Outcome:
    """Where everything is: two ensemble directories, the report, the test rows to ask a server about."""

    fge: Path
    curve: Path
    report: Path
    results_file: Path
    test_file: Path  # .npz with `inputs` and `targets`
    results: Results


def run(config: Config, out: Path, progress: Progress) -> Outcome:
    """Trains, evaluates and exports; everything lands under `out`.

    On a CPU, equal configs give equal weights, statistics, graphs, temperatures and metrics, bit for bit.
    Raises UserError for settings that cannot work, before any training, and for training that diverges.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    clock = Clock()
    splits = data_sets.load(config.data)
    fge.cycle_iterations(splits.train, config.fge, config.sgd)  # refuses what FGE could not do later
    _check_output(out)
    seed_stage(config.seed, "network")
    network = build_network(config, splits)
    graph = export.graph(network, splits.train.inputs)  # first: what cannot be exported is not worth training

    endpoint_epochs, fge_start = config.endpoint.epochs, config.fge.start_epoch
    runs = []
    with clock.time("endpoints"):
        for number in range(2):
            seed_stage(config.seed, "endpoint", number)
            with progress.stage(f"endpoint {number + 1} of 2", config.endpoint.epochs) as stage:
                runs.append(train.endpoint(network, splits.train, config.endpoint, config.sgd, stage, keep=[fge_start]))
    ends = [checkpoints[endpoint_epochs] for checkpoints in runs]
    start = runs[0][fge_start]

    with clock.time("fge"), progress.stage("fge", config.fge.epochs) as stage:
        seed_stage(config.seed, "fge")
        observe = _Tracer(network, splits, start, config)
        snapshots = fge.collect(network, splits.train, start, config.fge, config.sgd, stage, observe)

    with clock.time("curve"), progress.stage("curve", config.curve.epochs) as stage:
        seed_stage(config.seed, "curve")
        curve = connect.find_curve(network, splits.train, (ends[0], ends[1]), config.curve, config.sgd, stage)

    with clock.time("recalibrate, calibrate, evaluate"):
        progress.say("stage='recalibrate, calibrate, evaluate'")
        single = member.endpoints(network, splits, ends[:1], endpoint_epochs)
        pair = member.endpoints(network, splits, ends, endpoint_epochs)
        fge_ensemble = member.fge(network, splits, snapshots)
        grid = member.curve_points(network, splits, curve, config.curve.grid)
        stride = (config.curve.grid - 1) // (config.curve.members - 1)
        curve_ensemble = member.curve(curve, grid[::stride], splits)
        segment = Curve.straight(config.curve.kind, ends[0], ends[1], bends=0)
        segment_grid = member.curve_points(network, splits, segment, config.curve.grid)

    with clock.time("export"):
        progress.say("stage='export'")
        baselines = {"single": single, "endpoint-pair": pair}
        for ensemble in (fge_ensemble, curve_ensemble):
            manifest.write(out / ensemble.name, ensemble, baselines, network, graph, splits, config)

    named = {"single network": single, "endpoint pair": pair, "FGE": fge_ensemble, "curve": curve_ensemble}
    costs = [
        endpoint_epochs,
        2 * endpoint_epochs,
        fge_start + config.fge.epochs,
        2 * endpoint_epochs + config.curve.epochs,
    ]
    found = Results(
        config=config.to_dict(),
        rows=[
            results.row(ensemble, splits, name, cost)
            for (name, ensemble), cost in zip(named.items(), costs, strict=True)
        ],
        curve=results.profile(curve, grid, splits),
        segment=results.profile(segment, segment_grid, splits),
        fge=observe.trace,
        reliability={
            name: evaluate.reliability(ensemble.probs("test"), splits.test.targets) for name, ensemble in named.items()
        },
        temperatures={
            ensemble.name: [entry.temperature for entry in ensemble.members]
            for ensemble in (fge_ensemble, curve_ensemble)
        },
        pooled_temperatures={ensemble.name: ensemble.temperature for ensemble in (fge_ensemble, curve_ensemble)},
        seconds=clock.seconds,
    )
    outcome = Outcome(
        fge=out / fge_ensemble.name,
        curve=out / curve_ensemble.name,
        report=out / "report.html",
        results_file=out / "results.json",
        test_file=out / "test.npz",
        results=found,
    )
    atomic_file.write_bytes(outcome.test_file, _npz(splits))
    if picture := _picture(splits):
        atomic_file.write_bytes(out / "example.png", picture)
    atomic_file.write_bytes(outcome.results_file, json.dumps(found.to_dict(), indent=1).encode())
    report.write(found, manifest.library_versions(), manifest.git_commit(), outcome.report)
    return outcome


def _check_output(out: Path) -> None:
    """Raises OutputExists or OSError unless the results can be written there and replace nothing but an ensemble."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("fge", "curve"):
        try:
            manifest_file.check_replaceable(out / name)
        except FileExistsError as error:
            raise OutputExists(str(error)) from None
    with tempfile.TemporaryFile(dir=out):
        pass


def build_network(config: Config, splits: Splits) -> Network:
    inputs = splits.train.inputs
    preprocess = networks.Normalise(splits.mean, splits.std, inputs.dim())
    return networks.build(config.model, preprocess, classes=len(splits.class_labels), in_channels=inputs.shape[1])


class _Tracer:
    """Watches FGE: every few iterations, and at each snapshot, the test error of the weights as they are."""

    def __init__(self, network: Network, splits: Splits, start: Tensor, config: Config) -> None:
        self._network, self._splits, self._start = network, splits, start
        self._every = config.fge.trace_every
        cycle = config.fge.cycle_epochs * splits.train.batch_count(config.sgd.batch_size)
        self.trace = FgeTrace(cycle)

    def __call__(self, i: int, rate: float, weights: Tensor) -> None:
        cycle = self.trace.cycle_iterations
        if i % self._every and i % cycle != cycle // 2:
            return
        statistics = batchnorm.recalibrate(self._network, weights, self._splits.train)
        logits = evaluate.logits(self._network, weights, statistics, self._splits.test)
        self.trace.iteration.append(i)
        self.trace.learning_rate.append(rate)
        self.trace.test_error.append(evaluate.quality(logits.softmax(-1), self._splits.test.targets).error)
        self.trace.distance.append(float((weights - self._start).norm()))


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def _picture(splits: Splits) -> bytes | None:
    """The first test row as a PNG, to ask a server with; None if the rows are no pictures."""
    pixels = splits.test.inputs[0]
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        return None
    array = pixels.permute(1, 2, 0).numpy()
    buffer = BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()


def _npz(splits: Splits) -> bytes:
    buffer = BytesIO()
    np.savez_compressed(buffer, inputs=splits.test.inputs.numpy(), targets=splits.test.targets.numpy())
    return buffer.getvalue()
