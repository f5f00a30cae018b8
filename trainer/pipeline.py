"""The stages in order, one call each: start reading here."""

import json
import shutil
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
from trainer.checkpoint import Checkpoints
from trainer.config import Config
from trainer.curve import Curve
from trainer.data import Split, Splits
from trainer.errors import InvalidConfig, OutputExists
from trainer.fge import Snapshot
from trainer.network import Network
from trainer.progress import Progress
from trainer.reference import first_line
from trainer.results import FgeTrace, Results
from trainer.seeding import seed_stage


@dataclass(frozen=True)
class Outcome:
    """Where everything is: the ensemble directories, the report, the test rows to ask a server about."""

    ensembles: dict[str, Path]  # by method: "fge", "curve"
    report: Path
    results_file: Path
    test_file: Path  # .npz with `inputs` and `targets`
    results: Results


def run(config: Config, out: Path, progress: Progress, restart: bool = False) -> Outcome:
    """Trains, evaluates and exports; everything lands under `out`.

    A run that was killed goes on where its checkpoints are, and ends with the same bits; `restart` discards them.

    On a CPU, equal configs give equal weights, statistics, graphs, temperatures and metrics, bit for bit.
    Raises UserError for settings that cannot work, before any training, and for training that diverges.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    clock = Clock()
    splits = data_sets.load(config.data)
    train_split = splits.train.to(device)
    fge.cycle_iterations(splits.train, config.fge, config.sgd)  # refuses what FGE could not do later
    _check_output(out, config.methods)
    if restart:
        shutil.rmtree(out / ".checkpoints", ignore_errors=True)
    seed_stage(config.seed, "network")
    network = build_network(config, splits)
    graph = export.graph(network, splits.train.inputs)  # first: what cannot be exported is not worth training
    saved = Checkpoints(out, config.to_dict(), config.checkpoint_seconds)
    network.to(device, {"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision])
    progress.say(f"parameters={network.size} device={device} rows={ {k: len(v) for k, v in splits.by_name.items()} }")

    with clock.time("endpoints"):
        runs = _endpoints(config, network, train_split, saved, progress)
    ends = [checkpoints[config.endpoint.epochs] for checkpoints in runs]
    epochs = config.endpoint.epochs
    predictors = {"single network": (member.endpoints(network, splits, ends[:1], epochs), epochs)}
    ensembles = []
    trace = curve_profile = segment_profile = None

    if "fge" in config.methods:
        with clock.time("fge"):
            trace = FgeTrace(fge.cycle_iterations(splits.train, config.fge, config.sgd))
            snapshots = _fge(config, network, train_split, splits, runs[0], trace, saved, progress)
        with clock.time("fge: recalibrate, calibrate, evaluate"):
            ensembles.append(member.fge(network, splits, snapshots))
        cost = max(config.fge.start_epochs) + len(config.fge.start_epochs) * config.fge.epochs
        predictors["FGE"] = (ensembles[-1], cost)

    if "curve" in config.methods:
        with clock.time("curve"), progress.stage("curve", config.curve.epochs) as stage:
            seed_stage(config.seed, "curve")
            curve = connect.find_curve(
                network, train_split, (ends[0], ends[1]), config.curve, config.sgd, stage, saved.stage("curve")
            )
        with clock.time("curve: recalibrate, calibrate, evaluate"):
            progress.say("stage='curve: recalibrate, calibrate, evaluate'")
            grid = member.curve_points(network, splits, curve, config.curve.grid)
            stride, rest = divmod(config.curve.grid - 1, config.curve.members - 1)
            # The members are points of the grid where they can be.
            chosen = member.curve_points(network, splits, curve, config.curve.members) if rest else grid[::stride]
            ensembles.append(member.curve(curve, chosen, splits))
            segment = Curve.straight(config.curve.kind, ends[0], ends[1], bends=0)
            curve_profile = results.profile(curve, grid, splits)
            segment_profile = results.profile(
                segment, member.curve_points(network, splits, segment, config.curve.grid), splits
            )
        predictors["endpoint pair"] = (member.endpoints(network, splits, ends, epochs), 2 * epochs)
        predictors["curve"] = (ensembles[-1], 2 * epochs + config.curve.epochs)

    with clock.time("export"):
        progress.say("stage='export'")
        baselines = {
            name.replace(" network", "").replace(" ", "-"): predictors[name][0]
            for name in ("single network", "endpoint pair")
            if name in predictors
        }
        for ensemble in ensembles:
            manifest.write(out / ensemble.name, ensemble, baselines, network, graph, splits, config)

    ordered = {name: predictors[name] for name in results.ORDER if name in predictors}
    found = Results(
        config=config.to_dict(),
        rows=[results.row(ensemble, splits, name, cost) for name, (ensemble, cost) in ordered.items()],
        curve=curve_profile,
        segment=segment_profile,
        fge=trace,
        reliability={
            name: evaluate.reliability(ensemble.probs("test"), splits.test.targets)
            for name, (ensemble, _) in ordered.items()
        },
        temperatures={ensemble.name: [entry.temperature for entry in ensemble.members] for ensemble in ensembles},
        pooled_temperatures={ensemble.name: ensemble.temperature for ensemble in ensembles},
        seconds=clock.seconds,
    )
    outcome = Outcome(
        ensembles={ensemble.name: out / ensemble.name for ensemble in ensembles},
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
    saved.finish()
    return outcome


def choose_device(name: str) -> torch.device:
    """Raises InvalidConfig for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("device is 'cuda'; torch finds no GPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _endpoints(
    config: Config, network: Network, split: Split, saved: Checkpoints, progress: Progress
) -> list[dict[int, Tensor]]:
    """The checkpoints of each run, by epoch: two runs for a curve, else one."""
    count = 2 if "curve" in config.methods else 1
    keep = config.fge.start_epochs if "fge" in config.methods else []
    runs = []
    for number in range(count):
        seed_stage(config.seed, "endpoint", number)
        with progress.stage(f"endpoint {number + 1} of {count}", config.endpoint.epochs) as stage:
            # FGE starts from the first run alone.
            wanted = keep if number == 0 else []
            checkpoints = saved.stage(f"endpoint-{number}")
            runs.append(train.endpoint(network, split, config.endpoint, config.sgd, stage, wanted, checkpoints))
    return runs


def _fge(
    config: Config,
    network: Network,
    train_split: Split,
    splits: Splits,
    checkpoints: dict[int, Tensor],
    trace: FgeTrace,
    saved: Checkpoints,
    progress: Progress,
) -> list[list[Snapshot]]:
    """The snapshots of each run, one from each start; the first run is traced for the report."""
    runs = []
    starts = config.fge.start_epochs
    for number, epoch in enumerate(starts):
        seed_stage(config.seed, "fge", number)
        start = checkpoints[epoch]
        every = config.fge.trace_every
        observer = _Tracer(network, train_split, splits, start, every, trace) if number == 0 else None
        with progress.stage(f"fge {number + 1} of {len(starts)}", config.fge.epochs) as stage:
            runs.append(
                fge.collect(
                    network, train_split, start, config.fge, config.sgd, stage, observer, saved.stage(f"fge-{number}")
                )
            )
    return runs


def _check_output(out: Path, methods: list[str]) -> None:
    """Raises OutputExists or OSError unless the results can be written there and replace nothing but an ensemble."""
    out.mkdir(parents=True, exist_ok=True)
    for name in methods:
        try:
            manifest_file.check_replaceable(out / name)
        except FileExistsError as error:
            raise OutputExists(str(error)) from None
    with tempfile.TemporaryFile(dir=out):
        pass


def build_network(config: Config, splits: Splits) -> Network:
    """The config's network for these rows, on the CPU. Raises InvalidConfig if its classes are not the data's."""
    inputs = splits.train.inputs
    preprocess: torch.nn.Module = torch.nn.Identity()
    if inputs.dtype is not torch.int64:  # those are tokens
        preprocess = networks.Normalise(*splits.channel_statistics(), inputs.dim())
    classes = len(splits.class_labels)
    network = networks.build(config.model, preprocess, classes, in_channels=inputs.shape[1])
    try:
        with torch.no_grad(), network.evaluating():
            shape = list(network.logits(network.initial_weights(), network.initial_statistics(), inputs[:2]).shape)
    except Exception as error:
        raise InvalidConfig(
            f"model.factory '{config.model.factory}' cannot take rows of {list(inputs.shape[1:])}: {first_line(error)}"
        ) from error
    if shape != [2, classes]:
        raise InvalidConfig(
            f"model.factory '{config.model.factory}' gives {shape} for 2 rows; {splits.name} has {classes} classes"
        )
    return network


class _Tracer(fge.Observer):
    """Watches FGE: every few iterations, and at each snapshot, the test error of the weights as they are."""

    def __init__(
        self, network: Network, train_split: Split, splits: Splits, start: Tensor, every: int, trace: FgeTrace
    ) -> None:
        self._network, self._train, self._test, self._start = network, train_split, splits.test, start
        self._every, self._trace = every, trace

    def see(self, i: int, rate: float, weights: Tensor) -> None:
        cycle = self._trace.cycle_iterations
        if (not self._every or i % self._every) and i % cycle != cycle // 2:
            return
        statistics = batchnorm.recalibrate(self._network, weights, self._train)
        logits = evaluate.logits(self._network, weights, statistics, self._test)
        self._trace.iteration.append(i)
        self._trace.learning_rate.append(rate)
        self._trace.test_error.append(evaluate.quality(logits.softmax(-1), self._test.targets).error)
        self._trace.distance.append(float((weights - self._start).norm()))

    def state(self) -> dict[str, Tensor]:
        rows = (self._trace.iteration, self._trace.learning_rate, self._trace.test_error, self._trace.distance)
        return {"trace": torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        iteration, learning_rate, test_error, distance = state["trace"].tolist()
        self._trace.iteration[:] = [int(i) for i in iteration]
        self._trace.learning_rate[:], self._trace.test_error[:] = learning_rate, test_error
        self._trace.distance[:] = distance


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
