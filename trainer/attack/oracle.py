"""What an outsider has: rows that a client can send, and what is answered to them, by policy and precision.

Draws come from torch's global generator on the CPU; a server's come from the operating system.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.attack.ball import ORDERS, Ball
from trainer.attack.target import Target
from trainer.errors import InvalidConfig, UserError

# Raw rows [N, ...], floats on the CPU, to what is answered, [N, C]: probabilities, rounded ones, or one-hot labels.
# Every row of every call is answered by a fresh draw.
Oracle = Callable[[Tensor], Tensor]

PASSES = 20


class OutOfQueries(UserError):
    """The oracle answers no more: an attack ends with what it has."""


def mean(target: Target) -> Oracle:
    """Policy `mean`: deterministic."""
    return torch.no_grad()(lambda rows: target.mean(rows).cpu())


def random_member(target: Target) -> Oracle:
    """Policy `random`: every row by a member drawn for it, never as a function of the row."""
    return lambda rows: dealt(rows, len(target), lambda member, part: target.member_log_probs(member, part).exp())


@torch.no_grad()
def dealt(rows: Tensor, networks: int, answer: Callable[[int, Tensor], Tensor]) -> Tensor:
    """[N, C]: each row as the network answers that is drawn for it, uniformly. answer: of a network to all its rows."""
    drawn = torch.randint(networks, (len(rows),))
    order = drawn.argsort()
    parts = rows[order].split(torch.bincount(drawn, minlength=networks).tolist())
    answers = torch.cat([answer(network, part).cpu() for network, part in enumerate(parts) if len(part)])
    return torch.empty_like(answers).index_copy_(0, order, answers)


def disclosing(oracle: Oracle, answers: str) -> Oracle:
    """The oracle of a server that says so much. answers: "full", "rounded:N" (--round-probs N) or "labels".

    Raises InvalidConfig for another one.
    """
    check(answers)
    if answers == "full":
        return oracle
    if answers == "labels":
        return lambda rows: one_hot(oracle(rows))
    return lambda rows: rounded(oracle(rows), int(answers[-1]))


def check(answers: str) -> None:
    """Raises InvalidConfig for answers that no server gives."""
    if answers not in ("full", "labels", *(f"rounded:{decimals}" for decimals in range(8))):
        raise InvalidConfig(f"--answers is '{answers}'; expected full, labels, or rounded:N with N from 0 to 7")


def one_hot(probs_NC: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(probs_NC.argmax(1), probs_NC.shape[1]).to(probs_NC.dtype)


def rounded(probs_NC: Tensor, decimals: int) -> Tensor:
    """By largest remainders, as the server rounds: all down, and what is missing goes to those that lost most."""
    scale = 10.0**decimals
    scaled = probs_NC.double() * scale
    units: Tensor = scaled.floor()
    missing = scale - units.sum(1, keepdim=True)
    rank = (units - scaled).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    units += rank < missing
    return units / scale


def as_sent(rows: Tensor, dtype: np.dtype) -> NDArray[np.generic]:
    """Rows as the model takes them. Raises ValueError for values that its type does not have."""
    values = rows.cpu().numpy()
    sent = values.astype(dtype)
    if not np.array_equal(sent, values):
        raise ValueError(f"rows hold values that {dtype} does not have")
    return sent


def sendable(ball: Ball, clean: Tensor, shift: Tensor) -> Tensor:
    """The shift [N, ...] that a client can send, nearest to one within the ball.

    Pixels are whole numbers from 0 to 255: clamped and rounded, or where that leaves the ball, rounded towards the
    clean row. What has no bounds can be sent as it is.
    """
    if ball.high == torch.inf:
        return shift
    shift = (clean + shift).clamp(ball.low, ball.high) - clean
    whole = shift.round()
    outside = torch.linalg.vector_norm(whole.flatten(1), ORDERS[ball.norm], dim=1) > ball.epsilon
    whole[outside] = shift[outside].trunc()
    return whole


def accuracy(oracle: Oracle, rows: Tensor, targets: Tensor, passes: int = PASSES) -> Tensor:
    """[N]: in which share of `passes` each row is answered rightly; for draws that cannot be enumerated. float64."""
    right = torch.zeros(len(rows), dtype=torch.float64)
    for _ in range(passes):
        right += oracle(rows).argmax(1) == targets
    return right / passes
