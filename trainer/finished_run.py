"""A finished run in memory: its settings, rows and network, and the weights of every ensemble that it exported."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protos.ensemble_pb2 import Member
from protos.stored_ensemble import StoredEnsemble, Tensors
from protos.validate import validate
from trainer import config as settings
from trainer import data, pipeline, sources
from trainer.answers import Answers
from trainer.config import Config, DataConfig
from trainer.curve import KINDS, Curve
from trainer.data import Split, Splits
from trainer.errors import InvalidConfig
from trainer.network import Network, Placement, Statistics

# By method, what results.ORDER calls its ensemble.
NAMES = {"ind": "independent", "sse": "SSE", "fge": "FGE", "swa": "SWA", "swag": "SWAG", "curve": "curve"}


@dataclass(frozen=True)
class StoredPredictor:
    """Networks whose mean answers: weights [P] of each, and BatchNorm's statistics where they are stored."""

    name: str  # of results.ORDER
    training_epochs: int
    networks: list[tuple[Tensor, Statistics | None]]


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    config: Config
    splits: Splits  # on the CPU
    network: Network  # where the config runs it
    ensembles: dict[str, StoredEnsemble]  # by method
    training_epochs: dict[str, int]  # by predictor, as the run's own table has them

    def weights(self, method: str, weight_set: str) -> Tensor:
        """A stored weight set [P]."""
        return self._flat(self.ensembles[method].weight_sets[weight_set])

    def members(self, method: str) -> list[tuple[Member, Tensor, Statistics]]:
        """What an ensemble's members are: their entry, weights [P] and statistics, in serving order."""
        stored, members = self.ensembles[method], []
        for entry in stored.manifest.members:
            tensors = stored.tensors(entry)
            found = {name: torch.from_numpy(tensors[name]) for name in stored.manifest.statistic_names}
            statistics = self.network.initial_statistics()
            statistics |= {name: tensor.to(statistics[name]) for name, tensor in found.items()}
            members.append((entry, self._flat(tensors), statistics))
        return members

    def curve(self) -> Curve:
        """The curve that was found, from its control points."""
        point = self.ensembles["curve"].manifest.members[0].curve_point
        (kind,) = (kind for kind, number in KINDS.items() if number == point.curve)
        names = ["endpoint-0", *(f"bend-{k}" for k in range(1, point.bends + 1)), "endpoint-1"]
        return Curve(kind, [self.weights("curve", name) for name in names])

    def ends(self) -> list[Tensor]:
        """The networks trained apart, the curve's endpoints first; none if only snapshots were kept."""
        ends = []
        if "curve" in self.ensembles:
            points = self.curve().control_points
            ends = [points[0], points[-1]]
        if "ind" in self.ensembles:
            ends += [weights for _, weights, _ in self.members("ind")][len(ends) :]
        return ends

    def predictors(self) -> Iterator[StoredPredictor]:
        """One network, two, and every ensemble as it is served, in results.ORDER; the weights of one at a time."""
        epochs = self.config.endpoint.epochs
        if ends := self.ends():
            yield StoredPredictor("single network", epochs, [(ends[0], None)])
            yield StoredPredictor("endpoint pair", 2 * epochs, [(weights, None) for weights in ends[:2]])
        for method in (method for method in NAMES if method in self.ensembles):
            networks = [(weights, statistics) for _, weights, statistics in self.members(method)]
            yield StoredPredictor(NAMES[method], self.training_epochs[NAMES[method]], list(networks))

    def foreign(self, source: str) -> Split:
        """The test rows of another data set, or all of one without a test split. Raises InvalidConfig: other shapes."""
        own, mine = self.config.data, self.splits.test.inputs
        read = sources.read(DataConfig(source=source, root=own.root, image_size=own.image_size))
        rows = read.test or read.train
        if rows.inputs.shape[1:] != mine.shape[1:] or rows.inputs.dtype != mine.dtype:
            raise InvalidConfig(
                f"--ood '{source}' has rows of {list(rows.inputs.shape[1:])}, {rows.inputs.dtype}; "
                f"the run's are {list(mine.shape[1:])}, {mine.dtype}"
            )
        return Split(rows.inputs, rows.targets)

    def answers(self, foreign: Mapping[str, Split] | None = None) -> Answers:
        """Of the run's networks, kept in its folder. foreign: splits beside the run's own."""
        return self._answers(".", {**self.splits.measured, **(foreign or {})}, reduced=("train",))

    def answers_apart(self, name: str, splits: Mapping[str, Split]) -> Answers:
        """Of the run's networks on these splits alone, in a folder of that name beside the others'."""
        return self._answers(name, splits)

    def _answers(self, place: str, splits: Mapping[str, Split], reduced: Collection[str] = ()) -> Answers:
        folder = self.folder / "evaluation" / "answers" / place
        return Answers(folder, self.network, self.splits.train, splits, reduced)

    def _flat(self, tensors: Tensors) -> Tensor:
        try:
            return self.network.flatten({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        except KeyError as error:
            raise InvalidConfig(
                f"'{self.folder}' does not hold parameter {error}, which the forward pass never uses; "
                f"a network without it can be evaluated"
            ) from None


def is_finished(config: Config, folder: Path) -> bool:
    """Whether `folder` holds a finished run with exactly these settings."""
    path = folder / "results.json"
    if not path.is_file():
        return False
    theirs: dict[str, Any] = json.loads(path.read_text())["config"]
    mine: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return settings.completed(theirs) == mine


def load(folder: Path) -> FinishedRun:
    """Raises InvalidConfig for a folder that holds no finished run, or whose data are not what it was trained on."""
    path = folder / "results.json"
    if not path.is_file():
        raise InvalidConfig(f"'{folder}' holds no finished run: it has no results.json; see `thalweg-train run`")
    try:
        results = json.loads(path.read_text())
        values, rows = results["config"], results["rows"]
        training_epochs = {row["predictor"]: row["training_epochs"] for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidConfig(f"'{path}' is no run's results: {error!r}") from None
    config = settings.from_dict(values)
    if config.threads:
        torch.set_num_threads(config.threads)
    ensembles = {method: validate(folder / method) for method in config.methods}
    splits = data.load(config.data)
    trained_on = {stored.manifest.provenance.dataset.sha256 for stored in ensembles.values()}
    if trained_on != {splits.sha256()}:
        raise InvalidConfig(f"the rows of '{splits.name}' are not those that '{folder}' was trained on")
    network = pipeline.build_network(config, splits)
    network.to(Placement(pipeline.choose_device(config.device), channels_last=config.channels_last))
    return FinishedRun(folder, config, splits, network, ensembles, training_epochs)
