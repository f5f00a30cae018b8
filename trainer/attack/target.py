"""An ensemble as who has its weights sees it: every member's tempered probabilities, differentiable in the rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trainer.errors import InvalidConfig
from trainer.finished_run import FinishedRun
from trainer.network import Network, Statistics

RawToLogits = Callable[[Tensor], Tensor]  # raw rows [B, ...], floats, to logits [B, C], in evaluation mode


@dataclass(frozen=True)
class Target:
    """What a server answers (docs/manifest.md, steps 3 to 6), in float64 from the logits on.

    rows: raw, as a client sends them, but floats: of images, pixels in [0, 255].
    """

    networks: Sequence[RawToLogits]
    temperatures: Tensor  # [M] float64
    temperature: float = 1.0  # of the pooled mean; acts on two or more members

    def __len__(self) -> int:
        return len(self.networks)

    def member_log_probs(self, member: int, rows: Tensor) -> Tensor:
        """[B, C]. In float64: of a sure network's loss, 1e-20, float32 would show no gradient."""
        logits_BC = self.networks[member](rows).double()
        return torch.log_softmax(logits_BC / float(self.temperatures[member]), dim=-1)

    def log_probs(self, rows: Tensor) -> Tensor:
        """[M, B, C]: what policy `random` draws from."""
        return torch.stack([self.member_log_probs(member, rows) for member in range(len(self))])

    def mean(self, rows: Tensor) -> Tensor:
        """[B, C] probabilities: what policy `mean` answers."""
        return self.pooled(self.log_probs(rows)).exp()

    def mean_log_probs(self, rows: Tensor) -> Tensor:
        """[B, C]: `mean` as logits."""
        return self.pooled(self.log_probs(rows))

    def pooled(self, log_probs_MBC: Tensor) -> Tensor:
        """[B, C]: log of what policy `mean` answers, from the members' answers."""
        log_mean_BC = torch.logsumexp(log_probs_MBC, dim=0) - math.log(len(self))
        return torch.log_softmax(log_mean_BC / (self.temperature if len(self) > 1 else 1.0), dim=-1)

    def member(self, index: int) -> "Target":
        """That member alone, as a server with it alone would answer."""
        return Target(self.networks[index : index + 1], self.temperatures[index : index + 1])


def load(run: FinishedRun, method: str) -> Target:
    """The ensemble of a method of the run. Raises InvalidConfig for networks whose rows are tokens."""
    if run.splits.next_token or run.splits.train.inputs.dtype is torch.int64:
        raise InvalidConfig(f"'{run.folder}' has rows of tokens, which cannot be perturbed; expected pixels or floats")
    members = run.members(method)
    networks = [_raw_to_logits(run.network, weights, statistics) for _, weights, statistics in members]
    temperatures = torch.tensor([entry.temperature for entry, *_ in members], dtype=torch.float64)
    return Target(networks, temperatures, run.ensembles[method].manifest.temperature)


def _raw_to_logits(network: Network, weights: Tensor, statistics: Statistics) -> RawToLogits:
    return partial(_logits, network, weights.to(network.placement.device), statistics)


def _logits(network: Network, weights: Tensor, statistics: Statistics, rows: Tensor) -> Tensor:
    with network.evaluating():
        return network.logits(weights, statistics, rows)
