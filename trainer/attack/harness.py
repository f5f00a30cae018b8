"""Attacks an exported ensemble, one network and an ensemble beside it, and says what was found: start reading here.

    clean ─ white_box (pgd, arc, apgd) ─ worst of them for each row ─ black_box (transfer, square, repeat,
      a live server) ─ masking, checks ─ report ─ summary in the manifest

Adversarial rows are stored as each attack ends (store.py), so a second call computes nothing, and a killed one goes on.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer import finished_run
from trainer.attack import apgd, ball, black_box, checks, figures, masking, report, scores, summary, target, white_box
from trainer.attack.attacking import Attacking, Victim
from trainer.attack.oracle import sendable
from trainer.attack.results import CLEAN, WHOLE, WORST, Found, Line, Options, Predictor
from trainer.attack.store import Store
from trainer.attack.white_box import Attack
from trainer.errors import InvalidConfig
from trainer.finished_run import NAMES, FinishedRun
from trainer.progress import Progress
from trainer.report import publish
from trainer.tensor_file import digest

ONE = "one network"
DEFAULT_EPSILON = {"linf": 8.0, "l2": 128.0}  # of pixels: 8/255 and 0.5, as papers on CIFAR have them


@dataclass(frozen=True)
class Outcome:
    found: Found
    report: Path
    numbers: Path
    summary: str  # what became of the manifest's summary, for people
    computed: int  # attacks that had to be run; 0 if all was stored


def attack(directory: Path, options: Options, progress: Progress) -> Outcome:
    """Attacks the ensemble in `directory`, which lies in the folder of a finished run.

    Everything lands under RUN/attack/METHOD, and a summary in the ensemble's manifest.
    Raises UserError for a directory without its run, for rows that cannot be perturbed, and without the extra [attack].
    """
    run, method = _open(directory)
    options = _resolved(options, run, method)
    attacks = [white_box.make(name, options) for name in options.attacks]
    split = run.splits.test.spread(options.rows)
    clean = ball.floats(split.inputs).to(run.network.placement.device)
    around = ball.around(split.inputs, options.norm, options.epsilon)
    out = run.folder / "attack" / method
    store = Store(out / "examples")
    this = Attacking(run, options, around, split.inputs, clean, split.labels, store, progress)

    victims = _victims(run, method, options)
    predictors = [Predictor(victim.name, len(victim.target), victim.training_epochs) for victim in victims]
    found = Found(run.config.to_dict(), method, options, len(split), predictors)
    for victim in victims:
        _white_box(this, victim, attacks, found)
    found.lines += black_box.attack(this, victims)
    found.radii = masking.radii(this, victims[0])
    moved = this.examples(white_box.make("PGD", options), victims[0])["rows"]
    found.along = masking.along(this, victims[0], moved)
    found.checks = checks.of(found)

    pictures = figures.draw(found)
    if split.inputs.dtype == torch.uint8 and split.inputs.dim() == 4:
        pictures["examples"] = figures.examples(split.inputs, moved)
    page, numbers = publish(out, "attack", found, pictures, report.page(found, pictures))
    return Outcome(found, page, numbers, summary.write(run.folder / method, found), store.computed)


def _open(directory: Path) -> tuple[FinishedRun, str]:
    """The run and the method of an ensemble directory."""
    directory = directory.resolve()
    if not (directory.parent / "results.json").is_file():
        raise InvalidConfig(
            f"'{directory}' does not lie in the folder of a finished run, which has the network and the test rows: "
            f"there is no '{directory.parent / 'results.json'}'"
        )
    run = finished_run.load(directory.parent)
    if directory.name not in run.ensembles:
        raise InvalidConfig(f"'{directory}' is none of the run's ensembles; they are {', '.join(run.ensembles)}")
    return run, directory.name


def _resolved(options: Options, run: FinishedRun, method: str) -> Options:
    """With the defaults that depend on the run."""
    epsilon, trained = options.epsilon, run.config.adversary
    if not epsilon and trained.norm == options.norm:
        epsilon = trained.epsilon
    if not epsilon:
        if run.splits.test.inputs.dtype != torch.uint8:
            raise InvalidConfig("--epsilon is missing; the rows are floats, whose units only you know")
        epsilon = DEFAULT_EPSILON[options.norm]
    against = options.against
    if against is None:
        against = tuple(name for name in ("ind", "fge") if name in run.ensembles and name != method)[:1]
    if odd := [name for name in against if name not in run.ensembles]:
        raise InvalidConfig(f"--against has '{odd[0]}'; the run has {', '.join(run.ensembles)}")
    classes, attacks = len(run.splits.class_labels), options.attacks
    if classes < apgd.DLR_CLASSES:
        attacks = tuple(name for name in attacks if name != "APGD-T")
    if not attacks:
        raise InvalidConfig(f"APGD-T needs {apgd.DLR_CLASSES} classes; the run has {classes}")
    return dataclasses.replace(
        options,
        epsilon=epsilon,
        against=tuple(name for name in against if name != method),
        rows=min(options.rows, len(run.splits.test)),
        attacks=attacks,
        arc_classes=min(options.arc_classes, classes),
        apgd_targets=min(options.apgd_targets, classes - 1),
    )


def _victims(run: FinishedRun, method: str, options: Options) -> list[Victim]:
    """The ensemble, one network (an endpoint if there is one, else the first member), and what is attacked beside."""
    ends = next((name for name in ("curve", "ind") if name in run.ensembles), None)
    epochs = run.config.endpoint.epochs if ends else None
    first = target.load(run, ends or method).member(0)
    alone = Victim(ONE, first, ends or method, epochs, _digest(run, ends or method, 1))
    ensembles = [
        Victim(name, target.load(run, name), name, run.training_epochs.get(NAMES.get(name, name)), _digest(run, name))
        for name in (method, *(options.against or ()))
    ]
    return [ensembles[0], alone, *ensembles[1:]]


def _digest(run: FinishedRun, method: str, members: int | None = None) -> str:
    """Of everything that an answer depends on; not of the manifest, which the summary changes."""
    parts = [torch.tensor(run.ensembles[method].manifest.temperature)]
    for entry, weights, statistics in run.members(method)[:members]:
        parts += [torch.tensor(entry.temperature), weights, *statistics.values()]
    return digest(*parts)


def _white_box(this: Attacking, victim: Victim, attacks: Sequence[Attack], found: Found) -> None:
    """Each attack, and the worst of them for each row; to leave a row as it is is among an adversary's choices.

    Of pixels the worst again, rounded to whole levels, which is what a client can send.
    """
    rights = [scores.judge(victim.target, this.clean, this.targets)]
    whole = rights.copy()
    found.lines.append(Line(CLEAN, "clean", victim.name, rights[0].accuracy()))
    for each in attacks:
        stored = this.examples(each, victim)
        rights.append(this.right(stored))
        found.lines.append(
            Line(each.name, "white-box", victim.name, rights[-1].accuracy(), each.settings, float(stored["seconds"]))
        )
        if this.rows.dtype == torch.uint8:
            rows = this.clean.cpu()
            sent = rows + sendable(this.ball, rows, stored["rows"] - rows)
            whole.append(scores.judge(victim.target, sent, this.targets))
    found.lines.append(Line(WORST, "worst", victim.name, scores.worst(rights)))
    if len(whole) > 1:
        found.lines.append(Line(WHOLE, "worst", victim.name, scores.worst(whole)))
