"""Which repaired network is recommended: from what was measured on calibration rows, never on test rows."""

from collections.abc import Sequence

from trainer.sanitize.measure import Score
from trainer.sanitize.results import METHODS, Candidate

SLACK = 0.02  # in worth, by which a point of the curve may lie below the best one and still be exported with it
ROUNDING = 1e-9

KNOWN = (
    "The recommended network has the greatest accuracy less attack success on the calibration rows: a clean row lost "
    "counts as much as a hijacked one. On the curve the best point is sought in the same way; with its neighbours, as "
    f"far as they are within {100 * SLACK:g} points of it (one on each side in any case), it makes an ensemble. Of "
    "equals the one with the higher accuracy, then a network from scratch before a fine-tuned one before a curve."
)
UNKNOWN = (
    "No trigger was given, so only accuracy can be compared. It does not tell whether a backdoor is left, and is "
    "highest for a network that nobody repaired. So what is compared is what moved farthest from the suspect: the "
    "highest rate alone, and of the curve its middle, with the neighbours whose accuracy is within "
    f"{100 * SLACK:g} points (one on each side in any case). Of these the highest accuracy on the calibration rows is "
    "recommended; of equals, a network from scratch before a fine-tuned one before a curve."
)


def worth(score: Score) -> float:
    """Accuracy less attack success, in [−1, 1]; accuracy alone where no trigger is known."""
    hijacked = 0.0 if score.attack_success is None else score.attack_success.value
    return score.accuracy.value - hijacked


def inside(ts: Sequence[float], allowed: tuple[float, float]) -> list[int]:
    """The points of a grid that may be exported."""
    low, high = allowed
    return [i for i, t in enumerate(ts) if low - ROUNDING <= t <= high + ROUNDING]


def stretch(ts: Sequence[float], scores: Sequence[Score], allowed: tuple[float, float]) -> tuple[float, float]:
    """From which t to which members are worth serving. ts: an ascending grid, of which two or more are allowed."""
    eligible = inside(ts, allowed)
    worths = [worth(score) for score in scores]
    if scores[0].attack_success is None:
        best = min(eligible, key=lambda i: abs(ts[i] - 0.5))
    else:
        best = max(eligible, key=lambda i: (round(worths[i], 9), -abs(ts[i] - 0.5)))
    low = high = best
    while low > eligible[0] and (low == best or worths[low - 1] >= worths[best] - SLACK - ROUNDING):
        low -= 1
    while high < eligible[-1] and (high == best or worths[high + 1] >= worths[best] - SLACK - ROUNDING):
        high += 1
    return ts[low], ts[high]


def recommended(candidates: Sequence[Candidate]) -> Candidate:
    """By KNOWN or UNKNOWN, whichever holds."""
    if candidates[0].scores.calibration.attack_success is None:
        highest = max(candidate.rate for candidate in candidates)
        candidates = [candidate for candidate in candidates if candidate.rate == highest]

    def rank(candidate: Candidate) -> tuple[float, float, int]:
        score = candidate.scores.calibration
        return round(worth(score), 9), score.accuracy.value, METHODS.index(candidate.method)

    return max(candidates, key=rank)
