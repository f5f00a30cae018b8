"""What the paper measures on curves, for a finished run: the second pipeline, start reading here.

Every number comes from stored answers (answers.py), so a second call computes nothing, and a killed one goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path as FilePath

import torch
from torch import Tensor

from trainer import (
    evaluation_figures,
    evaluation_report,
    finished_run,
    paths,
    planes,
    progression,
    scores,
    trivial,
)
from trainer.answers import Answers
from trainer.curve import Curve
from trainer.evaluation_results import Evaluation, Options
from trainer.finished_run import FinishedRun, StoredPredictor
from trainer.progress import Progress
from trainer.report import publish
from trainer.scores import Answered

TRIVIAL_ABSENT = "the network is no sequence of linear and convolutional layers, ReLU and pooling (no BatchNorm)"


@dataclass(frozen=True)
class Outcome:
    evaluation: Evaluation
    report: FilePath
    numbers: FilePath
    computed: int  # how often a network was run on a split; 0 if all was stored


@dataclass(frozen=True)
class _Evaluating:
    """What every step needs."""

    run: FinishedRun
    options: Options
    answers: Answers
    progress: Progress


def evaluate(folder: FilePath, options: Options, progress: Progress) -> Outcome:
    """Measures the run in `folder`; everything lands under folder/evaluation.

    Raises UserError for a folder without a finished run, and for rows of another data set that do not fit.
    """
    run = finished_run.load(folder)
    foreign = {"ood": run.foreign(options.ood)} if options.ood else {}
    this = _Evaluating(run, options, run.answers(foreign), progress)
    rows = {name: len(split) for name, split in {**run.splits.measured, **foreign}.items()}

    found = Evaluation(run.config.to_dict(), options, rows)
    if "curve" in run.ensembles:
        _paths(this, found)
    _scores(this, found)
    computed = this.answers.computed + (_planes(this, found) if options.plane else 0)

    pictures = evaluation_figures.draw(found)
    page, numbers = publish(
        folder / "evaluation", "evaluation", found, pictures, evaluation_report.page(found, pictures)
    )
    return Outcome(found, page, numbers, computed)


def _paths(this: _Evaluating, found: Evaluation) -> None:
    """The curve, the straight segment, a random segment as long, and the trivial curve (Table 2, Figures 2 and 4)."""
    curve = this.run.curve()
    first, last = curve.control_points[0], curve.control_points[-1]
    segment = Curve("polygonal-chain", [first, last])
    points, splits, decay = this.options.points, this.run.splits, this.run.config.sgd.weight_decay
    found.curve = paths.along("curve", curve, points, this.answers, splits, decay, this.progress)
    found.segment = paths.along("segment", segment, points, this.answers, splits, decay, this.progress)
    away = paths.random_segment(first, segment.length(), this.run.config.seed)
    with this.progress.counting("random segment", points) as seen:
        found.walk = paths.walk("random segment", away, points, this.answers, this.run.splits, seen)
    if (trivial_curve := _trivial(this.run, first, last)) is None:
        found.absent["trivial curve"] = TRIVIAL_ABSENT
        return
    ts = [t for t in paths.grid(points) if t != 0.5]  # the origin, where a network answers nothing
    weights = [trivial_curve.point(t) for t in ts]
    chords = [float(torch.dist(a, b)) for a, b in pairwise(weights)]
    with this.progress.counting("trivial curve", len(ts)) as seen:
        found.trivial = paths.measure(
            "trivial curve", trivial_curve.point, ts, chords, this.answers, splits, decay, seen
        )


def _trivial(run: FinishedRun, first: Tensor, last: Tensor) -> trivial.TrivialCurve | None:
    degrees = trivial.degrees(run.network)
    return None if degrees is None else trivial.TrivialCurve(first, last, degrees)


def _scores(this: _Evaluating, found: Evaluation) -> None:
    """Every ensemble of the run, and ensembles of points of the curve (section 4.3); error over time (Figure 6)."""
    run = this.run
    answered = [_answered(this, predictor) for predictor in run.predictors() if predictor.name != "curve"]
    for entry in answered:
        if entry.name in ("FGE", "SSE"):
            method = entry.name.lower()
            members = list(run.ensembles[method].manifest.members)
            logits, targets = entry.logits["test"], run.splits.measured["test"].labels
            found.progressions.append(progression.of(method, members, logits, targets, run.config))
    if "curve" in run.ensembles:
        curve, cost = run.curve(), run.training_epochs["curve"]
        for size in this.options.members:
            answered.append(_points(this, f"curve, {size} points", cost, curve.point, size))
        if (control := _trivial(run, curve.control_points[0], curve.control_points[-1])) is not None:
            size = max(this.options.members) // 2 * 2  # the middle of an odd grid is the origin
            answered.append(
                _points(this, f"trivial, {size} points", 2 * run.config.endpoint.epochs, control.point, size)
            )
    independent: list[float] = []
    for entry in answered:
        if entry.name == "independent":
            independent = scores.independent_log_likelihoods(entry.logits["test"], run.splits.measured["test"].labels)
    found.scores += [scores.score(entry, run.splits, independent) for entry in answered]


def _points(this: _Evaluating, name: str, cost: int, point: Callable[[float], Tensor], size: int) -> Answered:
    return _answered(this, StoredPredictor(name, cost, [(point(t), None) for t in paths.grid(size)]))


def _answered(this: _Evaluating, predictor: StoredPredictor) -> Answered:
    splits = ("calibration", "test", *(["ood"] if this.options.ood else []))
    with this.progress.counting(predictor.name, len(predictor.networks)) as seen:
        given = []
        for done, (weights, statistics) in enumerate(predictor.networks, 1):
            given.append(this.answers.of(weights, splits, statistics))
            seen(done)
    logits = {split: torch.stack([answers[split] for answers in given]) for split in splits}
    return Answered(predictor.name, predictor.training_epochs, logits)


def _planes(this: _Evaluating, found: Evaluation) -> int:
    """Planes through three networks (Figures 1, 7, 8). Returns how often a network was run."""
    run, limit = this.run, this.options.plane_rows
    splits = {name: run.splits.measured[name].spread(limit) for name in ("train", "test")}
    folder = run.folder / "evaluation" / "answers"
    answers = Answers(folder, run.network, run.splits.train.spread(limit), splits, reduced=("train", "test"))
    for name, networks, drawn in _triples(run):
        with this.progress.counting(f"plane through {name}", this.options.plane) as seen:
            rows = len(splits["train"]), len(splits["test"])
            decay = run.config.sgd.weight_decay
            found.surfaces.append(planes.measure(name, networks, this.options.plane, answers, rows, decay, drawn, seen))
    if not found.surfaces:
        found.absent["planes"] = "the run has neither a curve nor three independent networks"
    return answers.computed


def _triples(run: FinishedRun) -> list[tuple[str, dict[str, Tensor], list[Tensor]]]:
    """Of each plane: its name, three networks by label, and points of the curve if it lies in the plane."""
    triples: list[tuple[str, dict[str, Tensor], list[Tensor]]] = []
    ends = run.ends()
    if len(ends) > 2:
        triples.append(("three independent networks", {f"network {k + 1}": ends[k] for k in range(3)}, []))
    elif ends and "fge" in run.ensembles:
        snapshot = run.members("fge")[-1][1]
        triples.append(
            (
                "the endpoints and an FGE snapshot",
                {"network 1": ends[0], "network 2": ends[1], "snapshot": snapshot},
                [],
            )
        )
    if "curve" in run.ensembles:
        curve = run.curve()
        middle = (curve.bends + 1) // 2
        networks = {"network 1": ends[0], "network 2": ends[1], "bend": curve.control_points[middle]}
        drawn = [curve.point(t) for t in paths.grid(101)] if curve.bends == 1 else []
        name = "the endpoints and the bend" if curve.bends == 1 else f"the endpoints and bend {middle}"
        triples.append((name, networks, drawn))
    return triples
