"""From a suspect network and a little clean data to one that may be served. The steps in order: start reading here.

Zhao, Chen, Das, Ramamurthy, Lin 2020, "Bridging mode connectivity in loss landscapes and adversarial robustness",
section 3: networks on a curve that is trained on clean rows lose, away from its ends, what was planted there.
Beside the curve, with the same rows, steps and rates: plain fine-tuning of the suspect, and a network from scratch.
"""

import dataclasses
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from protos.ensemble_pb2 import Provenance
from protos.graph import Graph
from trainer import checkpoint_file, connect, data, export, manifest, member, paths, pipeline, train
from trainer.answers import Answers
from trainer.checkpoint import Checkpoints
from trainer.config import Config
from trainer.curve import Curve
from trainer.data import Split, Splits
from trainer.errors import InvalidConfig
from trainer.member import End, Ensemble
from trainer.network import Placement
from trainer.objective import Objective
from trainer.progress import Progress
from trainer.report import publish
from trainer.sanitize import choice, figure, report, trigger
from trainer.sanitize.measure import Measure, measured
from trainer.sanitize.permuted_copy import permuted_copy
from trainer.sanitize.results import Candidate, Options, Point, Results
from trainer.seeding import seed_stage

CHECKED_ROWS = 100  # on which the permuted copy must answer as the suspect
REPAIRED = "repaired"  # the ensemble directory
# What a recipe's curve is made for, changed to what a repair needs; a user's own settings come after these.
SETTINGS = ("curve.start=random", "curve.grid=21", "curve.members=7")


@dataclass(frozen=True)
class Outcome:
    results: Results
    ensemble: Path
    report: Path
    numbers: Path


@dataclass(frozen=True)
class _Repairing:
    """What every step needs."""

    config: Config
    options: Options
    splits: Splits
    train: Split  # the clean rows, on the network's device
    objective: Objective
    saved: Checkpoints
    measure: Measure
    progress: Progress


@dataclass(frozen=True)
class _Repaired:
    """A candidate, and what it is made of: a stretch of a curve, or a network [P]."""

    candidate: Candidate
    made: Curve | Tensor


def repair(config: Config, options: Options, out: Path, progress: Progress, restart: bool = False) -> Outcome:
    """Trains, compares, and exports what is recommended, or the best of `options.method`, to OUT/repaired.

    OUT/sanitize.html and sanitize.json say why. What is trained stays in OUT/.checkpoints, and what networks answer in
    OUT/answers: a killed call goes on, and another one with the same networks, rows and rates trains nothing. `restart`
    discards the checkpoints.
    Raises UserError for what cannot work, before any training, and for training that diverges.
    """
    files = [file for file in (options.suspect, options.second) if file]
    config = dataclasses.replace(config, start=files, methods=["curve"])
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pipeline.choose_device(config.device)
    _check_grid(config, options)
    splits = data.load(config.data)
    if splits.next_token:
        raise InvalidConfig(f"{splits.name} has next tokens; expected rows with one class each")
    splits.train.batch_count(config.sgd.batch_size)
    pipeline.check_output(out, [REPAIRED])
    seed_stage(config.seed, "trigger")
    backdoor = trigger.load(options.trigger, options.target, splits) if options.trigger else None
    seed_stage(config.seed, "network")
    network = pipeline.build_network(config, splits, progress.say)
    given = [
        checkpoint_file.load(network, reference, name)
        for reference, name in zip(config.start, ("--suspect", "--second"), strict=False)
    ]
    graph = export.graph(network, splits.train.inputs)  # first: what cannot be exported is not worth repairing
    rates = tuple(options.rates) or (config.curve.learning_rate,)
    if restart:
        shutil.rmtree(out / ".checkpoints", ignore_errors=True)
    sha256 = [start.sha256 for start in given]
    saved = Checkpoints(out, _trained(config) | {"start_sha256": sha256}, config.checkpoint_seconds)
    network.to(Placement(device, pipeline.DTYPES[config.precision], config.channels_last, config.compile))
    suspect = End(given[0].weights.to(device), given[0].epochs)

    objective = Objective(network, cross_entropy, config.adversary, config.sgd.clip_norm, config.sgd.accumulate)
    answers = Answers(out / "answers", network, splits.train, measured(splits, backdoor), reduced=())
    measure = Measure(answers, splits, backdoor, suspect.weights)
    this = _Repairing(config, options, splits, splits.train.to(device), objective, saved, measure, progress)

    if len(given) == 2:
        other = given[1].weights.to(device)
    else:
        seed_stage(config.seed, "permuted copy")
        other = permuted_copy(network, suspect.weights, splits.train.inputs[:CHECKED_ROWS])
    curves, repaired = {}, []
    for rate in rates:
        points, part = _curve(this, (suspect.weights, other), rate)
        curves[f"{rate:g}"] = points
        repaired += [part, _alone(this, "fine-tuning", rate, suspect.weights), _alone(this, "from scratch", rate, None)]
    candidates = [entry.candidate for entry in repaired]
    results = Results(
        config=config.to_dict(),
        options=dataclasses.replace(options, rates=rates, keep_away=options.margin),
        rows={name: len(split) for name, split in {"train": splits.train, **measured(splits, backdoor)}.items()},
        steps=config.curve.epochs * splits.train.batch_count(config.sgd.batch_size),
        suspect=measure.of([suspect.weights]),
        curves=curves,
        candidates=candidates,
        recommended=choice.recommended(candidates),
        exported=choice.recommended([each for each in candidates if options.method in ("", each.method)]),
        rule=choice.UNKNOWN if backdoor is None else choice.KNOWN,
    )
    best = next(entry for entry in repaired if entry.candidate is results.exported)
    origin = manifest.provenance(config, splits, sha256)
    _export(this, best, suspect, graph, _origin(origin, results), out / REPAIRED)
    picture = figure.draw(results)
    page, numbers = publish(out, "sanitize", results, {"sanitize": picture}, report.page(results, picture))
    return Outcome(results, out / REPAIRED, page, numbers)


def _check_grid(config: Config, options: Options) -> None:
    if config.curve.align:
        raise InvalidConfig("curve.align is true, which would put the permuted units back; expected false")
    low, high = options.allowed
    if len(choice.inside(paths.grid(config.curve.grid), options.allowed)) < 2:
        raise InvalidConfig(
            f"curve.grid is {config.curve.grid}; expected so many points that two or more have t from {low:g} "
            f"to {high:g}"
        )


def _trained(config: Config) -> dict[str, object]:
    """The settings that training depends on: how finely the curve is measured and exported is not among them."""
    settings = config.to_dict()
    for name in ("grid", "members", "select"):
        del settings["curve"][name]
    del settings["export"]
    return settings


def _curve(this: _Repairing, ends: tuple[Tensor, Tensor], rate: float) -> tuple[list[Point], _Repaired]:
    """A curve between the ends, trained on the clean rows: how its points fare, and the stretch worth serving."""
    config, options = this.config, this.options
    name = f"curve, rate {rate:g}"
    with this.progress.stage(name, config.curve.epochs) as stage:
        seed_stage(config.seed, "curve", rate)
        settings = dataclasses.replace(config.curve, learning_rate=rate)
        saved = this.saved.stage(f"curve-{rate:g}")
        curve = connect.find_curve(this.objective, this.train, ends, settings, config.sgd, stage, saved)
    points = []
    with this.progress.counting(name, config.curve.grid) as seen:
        for done, t in enumerate(paths.grid(config.curve.grid), 1):
            points.append(Point(t, this.measure.of([curve.point(t)])))
            seen(done)
    if options.between is None:
        scores = [point.scores.calibration for point in points]
        low, high = choice.stretch([point.t for point in points], scores, options.allowed)
    else:
        low, high = options.between
    # A curve of its own: what is exported does not hold the weights of the ends.
    part = curve.part(low, high)
    members = [part.point(t) for t in paths.grid(config.curve.members)]
    candidate = Candidate("curve", rate, (low, high), len(members), this.measure.of(members))
    return points, _Repaired(candidate, part)


def _alone(this: _Repairing, method: str, rate: float, start: Tensor | None) -> _Repaired:
    """One network, with as many steps as the curve, at the same rates."""
    config = this.config
    with this.progress.stage(f"{method}, rate {rate:g}", config.curve.epochs) as stage:
        seed_stage(config.seed, method, rate)
        settings = dataclasses.replace(config.endpoint, epochs=config.curve.epochs, learning_rate=rate)
        saved = this.saved.stage(f"{method.replace(' ', '-')}-{rate:g}")
        weights = train.endpoint(
            this.objective, this.train, settings, config.sgd, stage, saved=saved, start=start
        )[settings.epochs]  # fmt: skip
    return _Repaired(Candidate(method, rate, None, 1, this.measure.of([weights])), weights)


def _origin(origin: Provenance, results: Results) -> Provenance:
    """With what was done, and what it was chosen from, beside the settings."""
    chosen = {"options": asdict(results.options), "exported": asdict(results.exported)}
    origin.config.update({"sanitize": json.loads(json.dumps(chosen))})  # tuples are lists there
    return origin


def _export(
    this: _Repairing, best: _Repaired, suspect: End, graph: Graph, origin: Provenance, directory: Path
) -> None:  # fmt: skip
    network, splits, config = this.objective.network, this.splits, this.config
    if isinstance(best.made, Curve):
        points = member.curve_points(network, splits, best.made, config.curve.members)
        ensemble: Ensemble = member.curve(best.made, points, splits)
    else:
        before = suspect.epochs if best.candidate.method == "fine-tuning" else 0
        end = End(best.made, before + config.curve.epochs)
        ensemble = member.endpoints(network, splits, REPAIRED, [end])
    baselines = {"suspect": member.endpoints(network, splits, "suspect", [suspect])}
    manifest.write(directory, ensemble, baselines, network, graph, splits, config, origin)
