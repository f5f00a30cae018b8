"""The stages in order, one call each: start reading here."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from protos import manifest_file
from protos.ensemble_pb2 import Provenance
from protos.graph import Graph
from trainer import (
    atomic_file,
    batchnorm,
    checkpoint_file,
    connect,
    evaluate,
    export,
    fge,
    manifest,
    member,
    report,
    results,
    snapshots,
    sse,
    train,
)
from trainer import data as data_sets
from trainer import network as networks
from trainer.align import align
from trainer.checkpoint import Checkpoints
from trainer.checkpoint_file import Start
from trainer.config import Config
from trainer.curve import Curve
from trainer.data import Split, Splits
from trainer.errors import InvalidConfig, OutputExists
from trainer.growing_ensemble import GrowingEnsemble
from trainer.member import End, Ensemble
from trainer.network import Network, Placement
from trainer.objective import Objective
from trainer.progress import Progress
from trainer.ranks import ALONE, Ranks
from trainer.reference import first_line
from trainer.results import FgeTrace, Found, Predictor, Results
from trainer.seeding import seed_stage
from trainer.snapshots import Cycle, Snapshot
from trainer.sources import available_memory_bytes
from trainer.symmetry import find_groups

ALIGN_CHECK_ROWS = 100  # on which an aligned network must answer as before

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds to the stage what passes, less what stages within it take."""
        start, before = time.perf_counter(), sum(self.seconds.values())
        yield
        within = sum(self.seconds.values()) - before
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start - within


@dataclass(frozen=True)
class Outcome:
    """Where everything is: the ensemble directories, the report, the test rows to ask a server about."""

    ensembles: dict[str, Path]  # by method
    report: Path
    results_file: Path
    test_file: Path  # .npz with `inputs` and `targets`
    results: Results


@dataclass(frozen=True)
class Run:
    """What every stage needs."""

    config: Config
    splits: Splits
    train: Split  # the training split, on the network's device
    objective: Objective
    graph: Graph
    origin: Provenance
    out: Path
    saved: Checkpoints
    progress: Progress
    clock: Clock

    @property
    def network(self) -> Network:
        return self.objective.network


def run(config: Config, out: Path, progress: Progress, restart: bool = False, ranks: Ranks = ALONE) -> Outcome:
    """Trains, evaluates and exports; everything lands under `out`.

    A run that was killed goes on where its checkpoints are, and ends with the same bits; `restart` discards them.
    On a CPU, equal configs give equal weights, statistics, graphs, temperatures and metrics, bit for bit.
    Several ranks (`ranks.joined`) call this at once and return the same; the first of them writes, the others read.
    Raises UserError for settings that cannot work, before any training, and for training that diverges.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    with ranks.first_goes_ahead():
        splits = data_sets.load(config.data)
    check_ranks(splits, config, ranks)
    if "fge" in config.methods:
        _check_fge(splits, config)
    _check_memory(config, splits)
    if config.adversary.norm != "none" and splits.train.inputs.dtype == torch.int64:
        raise InvalidConfig(
            f"adversary.norm is '{config.adversary.norm}'; {splits.name} has tokens, expected images or floats"
        )
    check_output(out, config.methods)
    with ranks.first_goes_ahead():
        if restart and ranks.is_first:
            shutil.rmtree(out / ".checkpoints", ignore_errors=True)
    seed_stage(config.seed, "network")
    network = build_network(config, splits, progress.say)
    given = [checkpoint_file.load(network, reference) for reference in config.start]
    sha256 = [start.sha256 for start in given]
    graph = export.graph(network, splits.train.inputs)  # first: what cannot be exported is not worth training
    if config.curve.align and "curve" in config.methods:
        find_groups(network, splits.train.inputs[:2])  # refuses what could not be aligned later
    settings = config.to_dict() | {"start_sha256": sha256}
    saved = Checkpoints(out, settings, config.checkpoint_seconds, ranks)
    network.to(Placement(device, DTYPES[config.precision], config.channels_last, config.compile, ranks))
    _check_placed(network, splits)
    progress.say(f"parameters={network.size} device={device} ranks={ranks.count} train_rows={len(splits.train)}")
    for start in given:
        progress.say(f"start={start.reference!r} epochs={start.epochs or 'unknown, counted as 0'}")
    origin = manifest.provenance(config, splits, sha256)
    objective = Objective(network, cross_entropy, config.adversary, config.sgd.clip_norm, config.sgd.accumulate)
    train_split = splits.train.to(device)
    this = Run(config, splits, train_split, objective, graph, origin, out, saved, progress, Clock())

    runs = _endpoints(this, given)
    ends = [End(checkpoints[max(checkpoints)], max(checkpoints)) for checkpoints in runs]
    found = _single(this, ends[0])
    if "ind" in config.methods:
        found += _ind(this, ends[: config.ind.runs])
    if "sse" in config.methods:
        found += _sse(this, found)
    if "fge" in config.methods:
        found += _fge(this, runs[: len(given) or config.fge.runs], found)
    if "curve" in config.methods:
        found += _curve(this, ends[0], ends[1])
    if ranks.is_first:
        _export(this, found)
    outcome = _write(this, found, out)
    saved.finish()
    return outcome


def choose_device(name: str) -> torch.device:
    """Raises InvalidConfig for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("device is 'cuda'; torch finds no GPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _endpoints(this: Run, given: list[Start]) -> list[dict[int, Tensor]]:
    """The checkpoints of each run, by epoch; as many runs as the methods need. What is given need not be trained."""
    config = this.config
    runs = [{start.epochs: start.weights.to(this.network.placement.device)} for start in given]
    with this.clock.time("endpoints"):
        for number in range(len(given), config.endpoint_runs):
            seed_stage(config.seed, "endpoint", number)
            starts_fge = "fge" in config.methods and not given and number < config.fge.runs
            keep = config.fge.start_epochs if starts_fge else []
            saved = this.saved.stage(f"endpoint-{number}")
            title = f"endpoint {number + 1} of {config.endpoint_runs}"
            with this.progress.stage(title, config.endpoint.epochs) as stage:
                runs.append(train.endpoint(this.objective, this.train, config.endpoint, config.sgd, stage, keep, saved))
    return runs


def _single(this: Run, end: End) -> Found:
    single = member.endpoints(this.network, this.splits, "single", [end])
    return Found([Predictor("single network", single, end.epochs)])


def _ind(this: Run, ends: list[End]) -> Found:
    """Networks trained apart: the ensemble that the others are measured against."""
    with this.clock.time("ind: recalibrate, calibrate, evaluate"):
        ensemble = member.endpoints(this.network, this.splits, "ind", ends)
    return Found([Predictor("independent", ensemble, sum(end.epochs for end in ends), exported=True)])


def _sse(this: Run, found: Found) -> Found:
    config = this.config.sse
    cycle = sse.cycle(this.splits.train, config, this.config.sgd)
    epochs = config.cycles * config.cycle_epochs
    growing = _growing(this, "sse", found)
    with this.clock.time("sse"):
        for number in range(config.runs):
            seed_stage(this.config.seed, "sse", number)
            start = this.network.initial_weights()
            walk = _Grower(this, growing, "sse", number)
            _collect(this, "sse", number, config.runs, start, cycle, epochs, walk)
    with this.clock.time("sse: recalibrate, calibrate, evaluate"):
        ensemble = growing.ensemble()
    return Found([Predictor("SSE", ensemble, config.runs * epochs, exported=True)])


def _fge(this: Run, endpoints: list[dict[int, Tensor]], found: Found) -> Found:
    """One run from each start of each endpoint, all snapshots pooled; the first run is traced for the report."""
    config, network, splits = this.config.fge, this.network, this.splits
    cycle = fge.cycle(splits.train, config, this.config.sgd)
    trace = FgeTrace(cycle.iterations)
    chosen = [[max(run)] if this.config.start else config.start_epochs for run in endpoints]
    starts = [run[epoch] for run, epochs in zip(endpoints, chosen, strict=True) for epoch in epochs]
    growing = _growing(this, "fge", found, config.select)
    runs = []
    with this.clock.time("fge"):
        for number, start in enumerate(starts):
            seed_stage(this.config.seed, "fge", number)
            walk: snapshots.Walk = _Grower(this, growing, "fge", number)
            if number == 0:
                walk = snapshots.Walks(_Tracer(this, start, cycle, trace), walk)
            runs.append(_collect(this, "fge", number, len(starts), start, cycle, config.epochs, walk))
    cost = sum(map(max, chosen)) + len(starts) * config.epochs
    with this.clock.time("fge: recalibrate, calibrate, evaluate"):
        predictors = [Predictor("FGE", growing.ensemble(), cost, exported=True)]
        if "swa" in this.config.methods:
            predictors.append(Predictor("SWA", member.averages(network, splits, runs), cost, exported=True))
        if "swag" in this.config.methods:
            seed_stage(this.config.seed, "swag")
            ensemble = member.gaussian(network, splits, runs, config.swag_samples)
            predictors.append(Predictor("SWAG", ensemble, cost, exported=True))
    return Found(predictors, fge=trace)


def _growing(this: Run, method: str, found: Found, count: int = 0) -> GrowingEnsemble:
    """Of the method's snapshots, its directory following. One of another run stays until this ensemble is complete.

    found: the baselines known so far. count: of members to select, 0: all.
    """
    first = this.network.placement.ranks.is_first
    there = manifest.members_there(this.out / method, this.origin) if first else None

    def write(ensemble: Ensemble) -> None:
        with this.clock.time("export"):
            _write_directory(this, ensemble, found)

    return GrowingEnsemble(method, this.network, this.splits, write, there, count)


def _collect(
    this: Run, name: str, number: int, count: int, start: Tensor, cycle: Cycle, epochs: int, walk: snapshots.Walk
) -> list[Snapshot]:
    saved = this.saved.stage(f"{name}-{number}")
    with this.progress.stage(f"{name} {number + 1} of {count}", epochs) as stage:
        return snapshots.collect(
            name, this.objective, this.train, start, cycle, epochs, this.config.sgd, stage, walk, saved
        )


def _curve(this: Run, first: End, last: End) -> Found:
    """The curve's ensemble, the endpoint pair, and the profiles of the curve and of the straight segment."""
    config, network, splits = this.config, this.network, this.splits
    if config.curve.align:
        last = _aligned(this, first, last)
    with this.clock.time("curve"), this.progress.stage("curve", config.curve.epochs) as stage:
        seed_stage(config.seed, "curve")
        saved = this.saved.stage("curve")
        ends = (first.weights, last.weights)
        curve = connect.find_curve(this.objective, this.train, ends, config.curve, config.sgd, stage, saved)
    with this.clock.time("curve: recalibrate, calibrate, evaluate"):
        this.progress.say("stage='curve: recalibrate, calibrate, evaluate'")
        segment = Curve.straight(config.curve.kind, *ends, bends=0)
        # Its logits are gone before the curve's are made.
        segment_profile = results.profile(
            segment, member.curve_points(network, splits, segment, config.curve.grid), splits
        )
        grid = member.curve_points(network, splits, curve, config.curve.grid)
        stride, rest = divmod(config.curve.grid - 1, config.curve.members - 1)
        # The members are points of the grid where they can be.
        chosen = member.curve_points(network, splits, curve, config.curve.members) if rest else grid[::stride]
        ensemble = member.curve(curve, member.select(chosen, splits, config.curve.select), splits)
        pair = member.endpoints(network, splits, "pair", [first, last])
    cost = first.epochs + last.epochs
    return Found(
        [
            Predictor("endpoint pair", pair, cost),
            Predictor("curve", ensemble, cost + config.curve.epochs, exported=True),
        ],
        curve=results.profile(curve, grid, splits),
        segment=segment_profile,
    )


def _aligned(this: Run, first: End, last: End) -> End:
    """The second endpoint with its hidden units in the first one's order: the same function, other weights."""
    with this.clock.time("align"):
        seed_stage(this.config.seed, "align")
        statistics = batchnorm.recalibrate(this.network, last.weights, this.train)
        rows = this.train.inputs[:ALIGN_CHECK_ROWS]
        aligned = align(this.network, first.weights, last.weights, statistics, rows).weights
    before, after = (float((weights - first.weights).norm()) for weights in (last.weights, aligned))
    this.progress.say(f"stage='align' distance={before:.3f} aligned={after:.3f}")
    return End(aligned, last.epochs)


def _export(this: Run, found: Found) -> None:
    for ensemble in (entry.ensemble for entry in found.predictors if entry.exported):
        _write_directory(this, ensemble, found)


def _write_directory(this: Run, ensemble: Ensemble, found: Found) -> None:
    baselines = {entry.name: entry.ensemble for entry in found.predictors if not entry.exported}
    manifest.write(
        this.out / ensemble.name, ensemble, baselines, this.network, this.graph, this.splits, this.config, this.origin
    )


def _write(this: Run, found: Found, out: Path) -> Outcome:
    """The results, the report, and what a client can ask a server about."""
    outcome = Outcome(
        ensembles={entry.ensemble.name: out / entry.ensemble.name for entry in found.predictors if entry.exported},
        report=out / "report.html",
        results_file=out / "results.json",
        test_file=out / "test.npz",
        results=results.collect(found, this.splits, this.config, this.clock.seconds),
    )
    if not this.network.placement.ranks.is_first:
        return outcome
    atomic_file.write_bytes(outcome.test_file, _npz(this.splits))
    for entry in found.predictors:
        if entry.exported:
            atomic_file.write_bytes(out / "logits" / f"{entry.ensemble.name}.safetensors", _logits(entry.ensemble))
    if picture := _picture(this.splits):
        atomic_file.write_bytes(out / "example.png", picture)
    atomic_file.write_bytes(outcome.results_file, json.dumps(outcome.results.to_dict(), indent=1).encode())
    report.write(outcome.results, manifest.library_versions(), manifest.git_commit(), outcome.report)
    return outcome


def check_ranks(splits: Splits, config: Config, ranks: Ranks) -> None:
    """Raises InvalidConfig if a rank would have no row of a batch."""
    rows, size = len(splits.train), config.sgd.batch_size
    if (smallest := rows % size or size) < ranks.count:
        raise InvalidConfig(
            f"sgd.batch_size {size} leaves a batch of {smallest} of {rows} rows for {ranks.count} ranks; choose another"
        )


def _check_fge(splits: Splits, config: Config) -> None:
    """Raises InvalidConfig for what FGE, and what is made of its snapshots, could not do later."""
    count = fge.snapshot_count(splits.train, config.fge, config.sgd, config.fge_runs) // config.fge_runs
    if "swag" in config.methods and count < 2:
        raise InvalidConfig(f"methods has swag, and FGE takes {count} snapshot a run; expected 2 or more")


def _check_memory(config: Config, splits: Splits) -> None:
    """Raises InvalidConfig if the logits that are held at once would not fit: float32, of every member and split."""
    members = 1  # the single network
    if "ind" in config.methods:
        members += config.ind.runs
    if "sse" in config.methods:
        members += config.sse.runs * config.sse.cycles
    if "fge" in config.methods:
        runs = config.fge_runs
        members += runs * -(-config.fge.epochs // config.fge.cycle_epochs)
        members += runs * config.fge.swag_samples if "swag" in config.methods else 0
        members += runs if "swa" in config.methods else 0
    if "curve" in config.methods:
        members += 2 + config.curve.grid  # the endpoint pair
        members += config.curve.members if (config.curve.grid - 1) % (config.curve.members - 1) else 0
    predictions = sum(split.targets.numel() for split in splits.measured.values())
    needed, available = 4 * members * predictions * len(splits.class_labels), available_memory_bytes()
    if needed > available:
        raise InvalidConfig(
            f"the logits of {members} networks, {predictions} predictions of {len(splits.class_labels)} classes each, "
            f"need {needed / 2**30:.1f} GiB, of {available / 2**30:.1f} GiB available; set fewer data.evaluation_rows, "
            f"data.calibration_rows or curve.grid"
        )


def check_output(out: Path, methods: list[str]) -> None:
    """Raises OutputExists or OSError unless the results can be written there and replace nothing but an ensemble."""
    out.mkdir(parents=True, exist_ok=True)
    for name in methods:
        try:
            manifest_file.check_replaceable(out / name)
        except FileExistsError as error:
            raise OutputExists(str(error)) from None
    with tempfile.TemporaryFile(dir=out):
        pass


def build_network(config: Config, splits: Splits, say: Callable[[str], None] = lambda line: None) -> Network:
    """The config's network for these rows, on the CPU. Raises InvalidConfig if its classes are not the data's."""
    inputs = splits.train.inputs
    preprocess: torch.nn.Module = torch.nn.Identity()
    if inputs.dtype is not torch.int64:  # those are tokens
        preprocess = networks.Normalise(*splits.channel_statistics(), inputs.dim())
    classes = len(splits.class_labels)
    network = networks.build(config.model, preprocess, classes, in_channels=inputs.shape[1], say=say)
    try:
        with torch.no_grad(), network.evaluating():
            shape = list(network.output(network.initial_weights(), network.initial_statistics(), inputs[:2]).shape)
    except Exception as error:
        raise InvalidConfig(
            f"model.factory '{config.model.factory}' cannot take rows of {list(inputs.shape[1:])}: {first_line(error)}"
        ) from error
    if shape != [*splits.train.targets[:2].shape, classes]:
        raise InvalidConfig(
            f"model.factory '{config.model.factory}' gives {shape} for 2 rows; {splits.name} has {classes} classes"
            + (f" at each of {inputs.shape[1]} positions" if splits.next_token else "")
        )
    return network


def _check_placed(network: Network, splits: Splits) -> None:
    """Raises InvalidConfig for a network that ran before, and does not where and how the config puts it."""
    placement = network.placement
    if not placement.channels_last and not placement.compiled:
        return
    rows = splits.train.inputs[: evaluate.BATCH_ROWS]  # compiled once for this many
    try:
        with torch.no_grad(), network.evaluating():
            network.logits(network.initial_weights(), network.initial_statistics(), rows)
    except Exception as error:
        raise InvalidConfig(
            f"channels_last is {placement.channels_last}, compile {placement.compiled}; with these the network fails: "
            f"{first_line(error)}"
        ) from error


class _Grower(snapshots.Walk):
    """Hands a run's snapshots to the ensemble, which finishes them."""

    def __init__(self, this: Run, growing: GrowingEnsemble, method: str, run: int) -> None:
        self._clock, self._growing, self._method, self._run = this.clock, growing, method, run

    def snapshot(self, snapshot: Snapshot) -> None:
        with self._clock.time(f"{self._method}: recalibrate, calibrate, evaluate"):
            self._growing.add(self._run, snapshot)


class _Tracer(snapshots.Walk):
    """Watches FGE: every few iterations, and at each snapshot, the test error of the weights as they are."""

    def __init__(self, this: Run, start: Tensor, cycle: Cycle, trace: FgeTrace) -> None:
        self._cycle = cycle
        self._network, self._train, self._start = this.network, this.train, start
        self._test = this.splits.measured["test"]
        self._every, self._trace = this.config.fge.trace_every, trace

    def see(self, i: int, rate: float, weights: Tensor) -> None:
        if (not self._every or i % self._every) and not self._cycle.takes(i):
            return
        statistics = batchnorm.recalibrate(self._network, weights, self._train)
        logits = evaluate.logits(self._network, weights, statistics, self._test)
        self._trace.iteration.append(i)
        self._trace.learning_rate.append(rate)
        self._trace.test_error.append(evaluate.quality(logits.softmax(-1), self._test.labels).error)
        self._trace.distance.append(float((weights - self._start).norm()))

    def state(self) -> dict[str, Tensor]:
        rows = (self._trace.iteration, self._trace.learning_rate, self._trace.test_error, self._trace.distance)
        return {"trace": torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        iteration, learning_rate, test_error, distance = state["trace"].tolist()
        self._trace.iteration[:] = [int(i) for i in iteration]
        self._trace.learning_rate[:], self._trace.test_error[:] = learning_rate, test_error
        self._trace.distance[:] = distance


def _picture(splits: Splits) -> bytes | None:
    """The first test row as a PNG, to ask a server with; None if the rows are no pictures."""
    pixels = splits.test.inputs[0]
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        return None
    array = pixels.permute(1, 2, 0).numpy()
    buffer = BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()


def _logits(ensemble: Ensemble) -> bytes:
    """[M, N, C] by split: what any other measure of the ensemble is computed from, without running it again."""
    splits = ("calibration", "test")
    return safetensors.torch.save(
        {split: torch.stack([member.logits[split] for member in ensemble.members]) for split in splits}
    )


def _npz(splits: Splits) -> bytes:
    buffer = BytesIO()
    np.savez_compressed(buffer, inputs=splits.test.inputs.numpy(), targets=splits.test.targets.numpy())
    return buffer.getvalue()
