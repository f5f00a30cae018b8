"""The table of an attack: a line an attack, side by side the policies of the ensemble and what it is compared with."""

from collections.abc import Iterator

from trainer.attack.results import Found, Predictor
from trainer.attack.scores import Share

POLICIES = (("expected", "random"), ("mean", "mean"), ("all_members", "all members"))


def heads(found: Found, *, full: bool) -> list[str]:
    return ["attack", *(f"{name}, {policy}" if policy else name for name, _, policy in _columns(found, full))]


def cells(found: Found, *, full: bool) -> Iterator[list[str]]:
    """In the order in which attacks were made. full: with intervals, and all policies for ensembles beside too."""
    for attack in dict.fromkeys(line.attack for line in found.lines):
        texts = [attack]
        for name, field, _ in _columns(found, full):
            line = found.line(attack, name)
            texts.append(_text(getattr(line.accuracy, field) if line else None, full))
        yield texts


def _columns(found: Found, full: bool) -> Iterator[tuple[str, str, str]]:
    """Predictor, field of its accuracy, policy: of a single network all policies are one."""
    for index, predictor in enumerate(found.predictors):
        for field, policy in POLICIES[: _count(predictor, full or index == 0)]:
            yield predictor.name, field, policy if predictor.members > 1 else ""


def _count(predictor: Predictor, every: bool) -> int:
    if predictor.members == 1:
        return 1
    return 3 if every else 2


def _text(share: Share | None, interval: bool) -> str:
    if share is None:
        return "–"
    text = f"{100 * share.value:.1f}"
    return f"{text} ({100 * share.low:.1f} – {100 * share.high:.1f})" if interval else text
