"""One network alone: an endpoint from scratch, or one that is trained further."""

from collections.abc import Collection

from torch import Tensor

from trainer.checkpoint import NoCheckpoints, StageCheckpoints
from trainer.config import EndpointConfig, SgdConfig
from trainer.data import Split
from trainer.descent import Descent, Observer, descend
from trainer.network import Network, Statistics
from trainer.objective import Objective
from trainer.progress import Stage
from trainer.schedule import step_down


def endpoint(
    objective: Objective,
    split: Split,
    config: EndpointConfig,
    sgd: SgdConfig,
    stage: Stage,
    keep: Collection[int] = (),
    saved: StageCheckpoints | None = None,
    start: Tensor | None = None,
) -> dict[int, Tensor]:
    """A network trained alone: its weights [P] after the last epoch and those in `keep`.

    From `start` [P], which stays as it is, or a fresh initialisation. Goes on from what `saved` holds.
    Raises TrainingDiverged, and InvalidConfig for a network with buffers that members could not share.
    """
    network, saved = objective.network, saved or NoCheckpoints()
    weights = network.initial_weights() if start is None else start.clone()
    statistics = network.initial_statistics()
    iterations = config.epochs * split.batch_count(sgd.batch_size)

    def gradients(inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss, gradient = objective.gradient(weights, statistics, inputs, targets)
        return loss, [gradient]

    def rate(i: int) -> float:
        return step_down((i - 1) / iterations, config.learning_rate)

    descent = Descent("endpoint", [weights], statistics, gradients, rate, sgd.weight_decay)
    keeper = _Keeper(network, weights, statistics, keep, saved)
    descend(descent, split, config.epochs, sgd, stage, saved, keeper)
    return keeper.kept | {config.epochs: weights}


class _Keeper(Observer):
    """Copies the weights after certain epochs."""

    def __init__(
        self, network: Network, weights: Tensor, statistics: Statistics, keep: Collection[int], saved: StageCheckpoints
    ) -> None:
        self._network, self._weights, self._statistics = network, weights, statistics
        self._keep, self._saved = keep, saved
        self.kept: dict[int, Tensor] = {}

    def epoch(self, done: int) -> None:
        if done == 1:
            self._network.check_buffers(self._statistics)
        if done in self._keep:
            self.kept[done] = self._weights.clone()
            self._saved.keep(f"kept-{done}", self._weights)

    def restore(self, state: dict[str, Tensor], done: int) -> None:
        for epoch in self._keep:
            if epoch <= done:
                self.kept[epoch] = self._saved.kept(f"kept-{epoch}").to(self._weights)
