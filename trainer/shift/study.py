"""How a finished run fares on rows that are not like those it learnt from: start reading here.

Every predictor answers the test rows, the same rows under each corruption, and the rows of other data sets. A network
runs once on each (answers.py), so a second call only measures, and a killed one goes on.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer import finished_run
from trainer.answers import Answers
from trainer.data import Split
from trainer.errors import InvalidConfig
from trainer.finished_run import FinishedRun, StoredPredictor
from trainer.progress import Progress
from trainer.report import publish
from trainer.shift import figures, report
from trainer.shift.contender import Contender
from trainer.shift.corruptions import SEVERITIES, Kind, applicable, corrupt
from trainer.shift.results import Options, Shifted, UnderShift


@dataclass(frozen=True)
class Outcome:
    found: Shifted
    report: Path
    numbers: Path
    computed: int  # how often a network was run on a split; 0 if all was stored


def study(folder: Path, options: Options, progress: Progress) -> Outcome:
    """Measures the run in `folder`; what was found lands under folder/shift.

    Raises UserError for a folder without a finished run, for one of a language model, and for rows of another data set
    that do not fit.
    """
    run = finished_run.load(folder)
    if run.splits.next_token:
        raise InvalidConfig(f"'{folder}' predicts next tokens; quality under shift is measured on whole rows")
    clean = run.splits.measured["test"].spread(options.rows)
    foreign = {source: run.foreign(source).spread(options.rows) for source in options.ood}
    kinds, absent = applicable(clean.inputs)
    rows = {"test": len(clean)} | {source: len(split) for source, split in foreign.items()}
    found = Shifted(run.config.to_dict(), options, rows, {kind.name: kind.strengths for kind in kinds}, absent=absent)

    contenders, computed = _enter(run, clean, foreign, found, progress)
    for kind in kinds:
        computed += _corrupt(run, kind, clean, contenders, found, progress)
    for contender, entry in zip(contenders, found.predictors, strict=True):
        if kinds:
            entry.risk["corrupted"] = contender.corrupted_risk()

    pictures = figures.draw(found)
    if kinds:
        pictures["corruptions"] = figures.corruptions(clean.inputs, kinds, run.config.data.split_seed)
    page, numbers = publish(folder / "shift", "shift", found, pictures, report.page(found, pictures))
    return Outcome(found, page, numbers, computed)


def _enter(
    run: FinishedRun, clean: Split, foreign: dict[str, Split], found: Shifted, progress: Progress
) -> tuple[list[Contender], int]:
    """Every predictor of the run, on its own rows and on those of other data sets; and how often a network was run."""
    answers = run.answers(foreign)
    chosen = run.splits.measured["test"].spread_indices(len(clean))
    contenders = []
    for predictor in run.predictors():
        with progress.counting(predictor.name, len(predictor.networks)) as seen:
            logits = _logits(answers, predictor, ("calibration", "test", *foreign), _told(seen))
        contender = Contender(logits["calibration"], run.splits.calibration.labels, found.options.level)
        measured, risk = contender.clean(logits["test"][:, chosen], clean.labels)
        entry = UnderShift(
            predictor=predictor.name,
            members=len(predictor.networks),
            training_epochs=predictor.training_epochs,
            threshold=contender.threshold,
            clean=measured,
            foreign={source: contender.foreign(logits[source]) for source in foreign},
            risk={"clean": risk},
        )
        found.predictors.append(entry)
        contenders.append(contender)
    return contenders, answers.computed


def _corrupt(
    run: FinishedRun, kind: Kind, clean: Split, contenders: list[Contender], found: Shifted, progress: Progress
) -> int:
    """The clean rows under one kind of corruption, at every severity. Returns how often a network was run."""
    seed = run.config.data.split_seed  # runs of several seeds see the same rows
    splits = {
        f"severity {severity}": Split(corrupt(clean.inputs, kind, severity, seed), clean.targets)
        for severity in range(1, SEVERITIES + 1)
    }
    answers = run.answers_apart(kind.name, splits)
    with progress.counting(kind.name, sum(entry.members for entry in found.predictors)) as seen:
        told = _told(seen)
        for predictor, contender, entry in zip(run.predictors(), contenders, found.predictors, strict=True):
            logits = _logits(answers, predictor, tuple(splits), told)
            entry.corrupted[kind.name] = [contender.corrupted(logits[name], clean.labels) for name in splits]
    return answers.computed


def _told(seen: Callable[[int], None]) -> Callable[[], object]:
    """To be called after each network; `seen` is told how many are done."""
    done = itertools.count(1)
    return lambda: seen(next(done))


def _logits(
    answers: Answers, predictor: StoredPredictor, names: Sequence[str], told: Callable[[], object]
) -> dict[str, Tensor]:
    """[M, N, C] by split."""
    given = []
    for weights, statistics in predictor.networks:
        given.append(answers.of(weights, names, statistics))
        told()
    return {name: torch.stack([each[name] for each in given]) for name in names}
