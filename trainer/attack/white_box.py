"""The attacks of an adversary who has the weights of every member, each with its budget."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from trainer.attack import apgd, arc, pgd
from trainer.attack.ball import Ball
from trainer.attack.results import Options
from trainer.attack.target import Target

Run = Callable[[Target, Tensor, Tensor, Ball], Tensor]


@dataclass(frozen=True)
class Attack:
    """run: clean floats [B, ...] and their classes [B] to adversarial rows; draws from torch's global generator."""

    name: str
    settings: dict[str, int]
    run: Run


def make(name: str, options: Options) -> Attack:
    """One of results.WHITE_BOX. Raises UserError if it needs a library that is not there."""
    return MAKERS[name](options)


def _pgd(options: Options) -> Attack:
    steps, restarts = options.pgd_steps, options.pgd_restarts

    def run(target: Target, clean: Tensor, targets: Tensor, ball: Ball) -> Tensor:
        return pgd.attack(target, clean, targets, ball, steps, restarts)

    return Attack("PGD", {"steps": steps, "restarts": restarts}, run)


def _arc(options: Options) -> Attack:
    steps, classes = options.arc_steps, options.arc_classes

    def run(target: Target, clean: Tensor, targets: Tensor, ball: Ball) -> Tensor:
        return arc.attack(target, clean, targets, ball, steps, classes)

    return Attack("ARC", {"steps": steps, "classes": classes}, run)


def _apgd_ce(options: Options) -> Attack:
    return Attack("APGD-CE", {"steps": options.apgd_steps}, _apgd(options, 0))


def _apgd_t(options: Options) -> Attack:
    rivals = options.apgd_targets
    return Attack("APGD-T", {"steps": options.apgd_steps, "targets": rivals}, _apgd(options, rivals))


def _apgd(options: Options, rivals: int) -> Run:
    apgd.require()  # now, not after an hour of other attacks

    def run(target: Target, clean: Tensor, targets: Tensor, ball: Ball) -> Tensor:
        return apgd.attack(target, clean, targets, ball, options.apgd_steps, rivals, options.seed)

    return run


MAKERS: dict[str, Callable[[Options], Attack]] = {"PGD": _pgd, "ARC": _arc, "APGD-CE": _apgd_ce, "APGD-T": _apgd_t}
