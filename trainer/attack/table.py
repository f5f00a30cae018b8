"""The table of an attack: a line an attack, side by side the policies of the ensemble and what it is compared with."""

from collections.abc import Iterator

from trainer.attack.results import Found, Line
from trainer.attack.scores import Share

RANDOM, MEAN, ALL = "random", "mean", "all members"


def heads(found: Found) -> list[str]:
    """Of a single network the three are one."""
    names = ["attack"]
    for predictor in found.predictors:
        if predictor.members == 1:
            names.append(predictor.name)
        else:
            names += [f"{predictor.name}, {what}" for what in (RANDOM, MEAN, ALL)]
    return names


def cells(found: Found, intervals: bool = False) -> Iterator[list[str]]:
    """In the order in which attacks were made."""
    for attack in dict.fromkeys(line.attack for line in found.lines):
        line = [attack]
        for predictor in found.predictors:
            own = found.line(attack, predictor.name)
            line += _shares(own, intervals)[: 1 if predictor.members == 1 else 3]
        yield line


def _shares(line: Line | None, intervals: bool) -> list[str]:
    if line is None:
        return ["–"] * 3
    accuracy = line.accuracy
    return [_share(share, intervals) for share in (accuracy.expected, accuracy.mean, accuracy.all_members)]


def _share(share: Share | None, interval: bool) -> str:
    if share is None:
        return "–"
    text = f"{100 * share.value:.1f}"
    return f"{text} ({100 * share.low:.1f} – {100 * share.high:.1f})" if interval else text
