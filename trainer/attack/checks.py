"""What must hold of the figures if the attacks are any good; what does not hold is said in the report, not hidden."""

from itertools import pairwise

from trainer.attack.results import CLEAN, WORST, Check, Found

SLACK = 0.01  # of the rows: a short attack at twice the radius may miss one
FIELDS = (("expected", "E[accuracy]"), ("mean", "accuracy of the mean"))


def of(found: Found) -> list[Check]:
    checks = [*_radii(found), *_along(found)]
    for predictor in found.predictors:
        checks += _order(found, predictor.name)
    return checks


def _radii(found: Found) -> list[Check]:
    checks = []
    for field, name in FIELDS:
        values = [getattr(radius.accuracy, field).value for radius in found.radii]
        said = ", ".join(
            f"{radius.epsilon:g}: {100 * value:.1f} %" for radius, value in zip(found.radii, values, strict=True)
        )
        rise = max(after - before for before, after in pairwise(values))
        checks.append(Check(f"{name} falls with the radius", rise <= SLACK, f"by radius {said}"))
        checks.append(
            Check(f"{name} reaches 0", values[-1] == 0.0, f"{100 * values[-1]:.1f} % at {found.radii[-1].epsilon:g}")
        )
    return checks


def _along(found: Found) -> list[Check]:
    along = found.along
    if along is None:
        return []
    attack, random = (", ".join(f"{loss:.3f}" for loss in losses) for losses in (along.attack, along.random))
    rises = all(before <= after for before, after in pairwise(along.attack))
    return [
        Check(
            "the loss rises along the direction of attack",
            rises,
            f"mean loss {attack} at {', '.join(f'{s:g}' for s in along.s)} of the way; "
            f"on {100 * along.rising:.1f} % of rows it never falls",
        ),
        Check("it rises more than along a random direction", along.attack[-1] > along.random[-1], f"there {random}"),
    ]


def _order(found: Found, predictor: str) -> list[Check]:
    """Who has the weights does no worse than who has not, and no attack raises accuracy."""
    worst, clean = found.line(WORST, predictor), found.line(CLEAN, predictor)
    others = [*found.of_kind("transfer", predictor), *found.of_kind("black-box", predictor)]
    if worst is None or clean is None or not others:
        return []
    checks = []
    for field, name in FIELDS:
        low, high = getattr(worst.accuracy, field).value, getattr(clean.accuracy, field).value
        values = {line.attack: share.value for line in others if (share := getattr(line.accuracy, field)) is not None}
        # A row that was wrong may be moved to where it is right.
        odd = [f"{attack} {100 * value:.1f}" for attack, value in values.items() if not low <= value <= high + SLACK]
        between = f"{100 * min(values.values()):.1f} … {100 * max(values.values()):.1f}"
        said = f"{100 * low:.1f} ≤ {between} ≤ {100 * high:.1f} %"
        checks.append(
            Check(
                f"{predictor}, {name}: white-box ≤ transfer, black-box ≤ clean",
                not odd,
                f"{said}; but {', '.join(odd)}" if odd else said,
            )
        )
    return checks
