"""What training minimises: the loss of a batch and its gradient, at any point of weight space."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import cross_entropy

from trainer.adversary import perturb
from trainer.config import AdversaryConfig
from trainer.network import Network, Statistics

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """loss: of logits [B, C] and targets [B], or of any output and targets that it understands; a mean over rows.

    With an adversary, training minimises the loss of the batch perturbed against the network of this very step.
    clip_norm: a longer gradient is scaled down to this length (Pascanu et al. 2013); 0 leaves it.
    accumulate: pieces of a batch that run one after the other, to save memory; BatchNorm normalises each by itself.
    A short batch makes fewer, so that none has a single row.
    """

    network: Network
    loss: Loss = cross_entropy
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    clip_norm: float = 0.0
    accumulate: int = 1

    def gradient(
        self, weights: Tensor, statistics: Statistics, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The batch's loss and its gradient [P] at the weights [P], in training mode; moves `statistics`.

        With several ranks, the batch is the same on all of them; each computes its part of every piece.
        """
        value, gradient = self._summed(weights, statistics, inputs, targets)
        if self.clip_norm:
            gradient *= (self.clip_norm / gradient.norm()).clamp(max=1.0)
        return value, gradient

    def _summed(
        self, weights: Tensor, statistics: Statistics, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient over all pieces and ranks."""
        device, ranks = self.network.placement.device, self.network.placement.ranks
        pieces = max(1, min(self.accumulate, len(targets) // max(2, ranks.count)))
        if pieces == ranks.count == 1:
            return self._share(weights, statistics, inputs, targets, 1.0)
        total = weights.new_zeros(len(weights) + 1)  # gradient and loss, to cross between ranks as one
        with ranks.draw_apart(device):
            for rows, classes in zip(inputs.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
                part, expected = ranks.part(rows), ranks.part(classes)
                share = len(expected) / len(targets)
                loss, gradient = self._share(weights, statistics, part, expected, share)
                total[:-1] += gradient
                total[-1] += loss
        ranks.sum(total)
        return total[-1], total[:-1]

    def _share(
        self, weights: Tensor, statistics: Statistics, inputs: Tensor, targets: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient of some of a batch's rows, times their share of it.

        Before differentiation: a rank's gradients pass through the other ranks' BatchNorm.
        """

        def loss(outputs: Tensor, expected: Tensor) -> Tensor:
            return share * self.loss(outputs, expected)

        if self.adversary.norm != "none":
            inputs = self._perturbed(weights, statistics, inputs, targets, loss)
        return self.network.gradient(weights, statistics, inputs, targets, loss)

    def _perturbed(
        self, weights: Tensor, statistics: Statistics, inputs: Tensor, targets: Tensor, loss: Loss
    ) -> Tensor:
        """The inputs as the adversary moves them, in training mode: BatchNorm uses the batch's own statistics.

        Practice differs: the code of Rice et al. 2020 attacks in training mode, MadryLab/robustness in evaluation
        mode. Here the running statistics mix all t on a curve, and begin anew with FGE: in evaluation mode another
        network would be attacked than is trained. Leaves `statistics` where they are.
        """
        copies, scale = self.network.copy_buffers(statistics), self.network.placement.loss_scale

        def loss_of(moved: Tensor) -> Tensor:  # scaled: the adversary asks for a direction alone
            return scale * self.network.training_loss(weights, copies, moved, targets, loss)

        return perturb(loss_of, inputs, self.adversary)
