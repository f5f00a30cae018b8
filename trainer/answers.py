"""What networks answer to the rows of each split, kept on disk: no network is run twice on the same rows.

One safetensors file a network, named by a hash of its weights and of the rows that recalibrate it, so a path's points,
ensembles and planes share what they have in common, and files of another run are never taken for this one's. Each
appears by rename: a killed evaluation goes on where it was.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from trainer import atomic_file, batchnorm, evaluate, tensor_file
from trainer.data import Split
from trainer.network import Network, Statistics
from trainer.tensor_file import digest


class Answers:
    """recalibration: rows for BatchNorm. splits: by name. reduced: those of which only mean NLL and error are kept."""

    def __init__(
        self,
        folder: Path,
        network: Network,
        recalibration: Split,
        splits: Mapping[str, Split],
        reduced: Collection[str],
    ) -> None:
        self._folder, self._network, self._reduced = folder, network, reduced
        self._splits = splits
        self._rows = {name: digest(split.inputs, split.targets) for name, split in splits.items()}
        self._recalibration = recalibration.to(network.placement.device)
        self._recalibrated_on = digest(recalibration.inputs)
        self.computed = 0  # how often a network was run on a split

    def of(self, weights: Tensor, names: Collection[str], statistics: Statistics | None = None) -> dict[str, Tensor]:
        """By split: logits [N, C], or [mean NLL, error] float64 of a reduced one.

        weights: [P], on the CPU. statistics: BatchNorm's, where they are known; else recalibrated.
        """
        path = self._folder / f"{digest(weights)[:16]}-{self._recalibrated_on[:16]}.safetensors"
        keys = {name: f"{name}-{self._rows[name][:16]}{'-reduced' * (name in self._reduced)}" for name in names}
        known = tensor_file.read(path)
        missing = [name for name in names if keys[name] not in known]
        if missing:
            weights = weights.to(self._network.placement.device)
            if statistics is None:
                statistics = batchnorm.recalibrate(self._network, weights, self._recalibration)
            statistics = {name: tensor.to(self._network.placement.device) for name, tensor in statistics.items()}
            known |= {keys[name]: self._run(weights, statistics, name) for name in missing}
            atomic_file.write_bytes(path, safetensors.torch.save(known))
        return {name: known[keys[name]] for name in names}

    def _run(self, weights: Tensor, statistics: Statistics, name: str) -> Tensor:
        self.computed += 1
        logits = evaluate.logits(self._network, weights, statistics, self._splits[name])
        if name not in self._reduced:
            return logits
        labels = self._splits[name].labels
        # In float64, and not from probabilities: a loss of 1e-20 is not 0.
        nll = torch.nn.functional.cross_entropy(logits.double(), labels)
        return torch.stack([nll, (logits.argmax(1) != labels).double().mean()])
