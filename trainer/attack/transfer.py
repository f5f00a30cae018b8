"""Transfer: examples made with the weights of a network that an outsider may have, against what is served. No query.

Papernot, McDaniel, Goodfellow: Transferability in machine learning, 2016.
"""

import torch
from torch import Tensor

from trainer.adversary import perturb
from trainer.attack import target
from trainer.attack.ball import Ball, floats
from trainer.attack.oracle import sendable
from trainer.attack.target import RawToLogits
from trainer.config import AdversaryConfig
from trainer.data import Splits
from trainer.errors import InvalidConfig
from trainer.evaluate import BATCH_ROWS
from trainer.finished_run import FinishedRun


def examples(network: RawToLogits, rows: Tensor, targets: Tensor, ball: Ball, steps: int) -> Tensor:
    """PGD on the network's cross-entropy, to the last step: what fools it by far may fool others. [N, ...] floats.

    rows: raw, of their own type; what comes back is what a client can send. A random start, steps of 2.5 ε / steps.
    """
    config = AdversaryConfig(ball.norm, ball.epsilon, steps, 2.5 * ball.epsilon / steps, random_start=True)
    found = []
    for part, own in zip(rows.split(BATCH_ROWS), targets.split(BATCH_ROWS), strict=True):

        def loss(inputs: Tensor, own: Tensor = own) -> Tensor:
            logits = network(inputs)
            return torch.nn.functional.cross_entropy(logits, own.to(logits.device), reduction="sum")

        clean = floats(part)
        found.append(clean + sendable(ball, clean, perturb(loss, part, config) - clean))
    return torch.cat(found)


def public_endpoint(run: FinishedRun) -> RawToLogits:
    """The curve's end at t = 0, as if it had been published. Raises InvalidConfig for a run without that member."""
    if "curve" not in run.ensembles:
        raise InvalidConfig(f"'{run.folder}' has no curve; its methods are {', '.join(run.ensembles)}")
    for (entry, *_), network in zip(run.members("curve"), target.load(run, "curve").networks, strict=True):
        if entry.curve_point.t == 0.0:
            return network
    raise InvalidConfig(f"the curve in '{run.folder}' has no member at t = 0")


def outsider(run: FinishedRun) -> RawToLogits | None:
    """A network that was trained in the run and that no other method has touched; None if there is none.

    Method `ind` has them all: the curve joins the first two, FGE starts from the first `fge.runs`.
    """
    if "ind" not in run.ensembles:
        return None
    used = max(2 if "curve" in run.ensembles else 1, run.config.fge.runs if "fge" in run.ensembles else 1)
    networks = target.load(run, "ind").networks
    return networks[-1] if len(networks) > used else None


def from_another_run(other: FinishedRun, splits: Splits) -> RawToLogits:
    """The first network of another run on the same kind of rows. Raises InvalidConfig."""
    theirs, ours = (list(each.train.inputs.shape[1:]) for each in (other.splits, splits))
    if theirs != ours or other.splits.class_labels != splits.class_labels:
        raise InvalidConfig(
            f"'{other.folder}' has rows {theirs} of {len(other.splits.class_labels)} classes; "
            f"expected {ours} of the same {len(splits.class_labels)}"
        )
    return target.load(other, next(iter(other.ensembles))).networks[0]
