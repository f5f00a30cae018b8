"""The attacker who repeats: asks about every point several times, and makes of the answers what a fresh draw hides.

Answers of full precision tell the members apart: q of them show M(1 − (1 − 1/M)^q) distinct ones on average, and all
M after M · H_M (coupon collector), so a finite ensemble's mean is there for the asking. From rounded answers or labels,
and from networks of a continuous t, which never come twice, only the average of the draws is left.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.attack import square
from trainer.attack.ball import Ball
from trainer.attack.oracle import Oracle
from trainer.attack.square import Snapshot
from trainer.errors import InvalidConfig

TIMES = (1, 5, 12, 24)
# Answers of one network to one row differ by rounding if batches differ; those of two networks by far more.
SAME = 1e-3  # of log p, in every class


def attack(
    oracle: Oracle,
    clean: Tensor,
    targets: Tensor,
    ball: Ball,
    queries: Sequence[int],
    times: int,
    *,
    deduplicate: bool = False,
    stop_when_fooled: bool = False,
) -> list[Snapshot]:
    """Square on what `times` answers to each point show. Budgets count every query: it sees so many fewer points.

    deduplicate: for answers of full precision. stop_when_fooled: as of square.attack. Raises InvalidConfig for a budget
    that is less than `times`.
    """
    if times > min(queries):
        raise InvalidConfig(f"{times} repetitions a point; the budget is {min(queries)} queries")
    oracle = oracle if times == 1 else repeated(oracle, times, deduplicate=deduplicate)
    points = [budget // times for budget in queries]
    found = square.attack(oracle, clean, targets, ball, points, stop_when_fooled=stop_when_fooled)
    by_points = {snapshot.queries: snapshot for snapshot in found}
    snapshots = [(budget, by_points[budget // times]) for budget in sorted(set(queries))]
    return [Snapshot(budget, times * snapshot.asked, snapshot.rows) for budget, snapshot in snapshots]


def repeated(oracle: Oracle, times: int, *, deduplicate: bool) -> Oracle:
    """An oracle that answers with the mean of `times` answers, or of those that differ."""

    def answer(rows: Tensor) -> Tensor:
        answers_QNC = oracle(torch.cat([rows] * times)).double().unflatten(0, (times, len(rows)))
        counted_QN = (first_of_its_kind(answers_QNC) if deduplicate else torch.ones(times, len(rows))).double()
        return torch.einsum("qn,qnc->nc", counted_QN / counted_QN.sum(0), answers_QNC)

    return answer


def first_of_its_kind(answers_QNC: Tensor) -> Tensor:
    """[Q, N] bool: whether no earlier answer to the row is the same."""
    logs = answers_QNC.clamp(min=torch.finfo(torch.float32).tiny).log()
    first = torch.ones(answers_QNC.shape[:2], dtype=torch.bool)
    for query in range(1, len(logs)):
        known = (logs[:query] - logs[query]).abs().amax(2) < SAME
        first[query] = ~known.any(0)
    return first
