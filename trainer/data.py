"""The three splits: train, calibration, test. Inputs stay raw: normalisation travels in the graph."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from trainer import sources
from trainer.augment import AUGMENTATIONS
from trainer.config import DataConfig
from trainer.errors import InvalidConfig


@dataclass(frozen=True)
class Split:
    inputs: Tensor  # raw, as a client sends them: [N, ...]
    targets: Tensor  # int64, a class each: [N], or [N, L], of the next token at each of L positions
    augment: Callable[[Tensor], Tensor] | None = None  # of the batches alone: who reads `inputs` sees them as they are

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def labels(self) -> Tensor:
        """What logits are measured against, one a prediction: [N], or [N·L], row by row."""
        return self.targets.flatten()

    def spread(self, rows: int) -> "Split":
        """At most so many rows, equally spaced; all of them if `rows` is 0."""
        if not 0 < rows < len(self):
            return self
        chosen = self.spread_indices(rows)
        return dataclasses.replace(self, inputs=self.inputs[chosen], targets=self.targets[chosen])

    def spread_indices(self, rows: int) -> Tensor:
        """Of so many rows, equally spaced."""
        return torch.arange(rows) * len(self) // rows

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: every row once, in an order drawn from torch's global generator; the last batch may be short."""
        order = torch.randperm(len(self)).to(self.inputs.device)
        for rows in order.split(size):
            inputs = self.inputs[rows]
            yield (inputs if self.augment is None else self.augment(inputs)), self.targets[rows]

    def batch_count(self, size: int) -> int:
        """Iterations in an epoch. Raises InvalidConfig if a batch would hold one row: BatchNorm cannot train on it."""
        if len(self) % size == 1 or size == 1:
            raise InvalidConfig(f"sgd.batch_size {size} leaves a batch of one of {len(self)} rows; choose another")
        return -(-len(self) // size)

    def to(self, device: torch.device) -> "Split":
        return dataclasses.replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@dataclass(frozen=True)
class Splits:
    name: str
    train: Split
    calibration: Split
    test: Split
    class_labels: list[str]
    evaluation_rows: int = 0  # of train and test, to measure on; 0: all

    @property
    def next_token(self) -> bool:
        """Whether rows have a class at each position, the next token, and not one in all."""
        return self.train.targets.dim() == 2

    @cached_property
    def measured(self) -> dict[str, Split]:
        """What predictors are measured on, by name; all of calibration."""
        return {
            "train": self.train.spread(self.evaluation_rows),
            "calibration": self.calibration,
            "test": self.test.spread(self.evaluation_rows),
        }

    @property
    def by_name(self) -> dict[str, Split]:
        return {"train": self.train, "calibration": self.calibration, "test": self.test}

    def sha256(self) -> str:
        """Of the bytes of every split's inputs and targets, in the order train, calibration, test."""
        digest = hashlib.sha256()
        for split in self.by_name.values():
            digest.update(split.inputs.contiguous().numpy().tobytes())
            digest.update(split.targets.numpy().tobytes())
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the training inputs by channel (axis 1), in raw units."""
        total = squares = torch.zeros((), dtype=torch.float64)
        count = 0
        for inputs in self.train.inputs.split(1000):  # a data set in float64 would be eight times its size
            channels = inputs.double().transpose(0, 1).flatten(1)
            total, squares, count = total + channels.sum(1), squares + (channels**2).sum(1), count + channels.shape[1]
        mean = total / count
        return mean.tolist(), (squares / count - mean**2).clamp(min=0).sqrt().tolist()


def load(config: DataConfig) -> Splits:
    """The splits of a source. Raises InvalidConfig for an unknown source or more rows than there are.

    Without a test split of its own, a source is split three ways, stratified by class. With one, the last
    `calibration_rows` of its training rows are held out, as in the paper's experiments; `train_rows`, if fewer than
    what remains, are a stratified choice. Rows with a class at each position are chosen without strata.
    """
    source = sources.read(config)
    augment = AUGMENTATIONS[config.augment]
    if augment is not None and source.train.inputs.dim() != 4:
        raise InvalidConfig(f"data.augment is '{config.augment}'; the rows of {config.source} are no images [C, H, W]")
    rows = np.arange(len(source.train.targets))
    targets = source.train.targets.numpy()
    classes, strata = len(source.class_labels), targets
    if targets.ndim > 1:
        classes, strata = 1, np.zeros(len(rows))  # no row stands for a class
    if source.test is None:
        train_rows = config.train_rows or len(rows) - 2 * config.calibration_rows
        wanted = train_rows + config.calibration_rows
        for name, count in (("train_rows", train_rows), ("calibration_rows", config.calibration_rows)):
            if count < classes:
                raise InvalidConfig(f"data.{name} is {count}; expected {classes}, one a class, or more")
        if wanted > len(rows) - classes:
            raise InvalidConfig(
                f"data.train_rows + data.calibration_rows is {wanted}; {config.source} has {len(rows)} rows, "
                f"of which the test needs {classes} or more"
            )
        rest, held_out = train_test_split(rows, train_size=wanted, stratify=strata, random_state=config.split_seed)
        train, calibration = train_test_split(
            rest, train_size=train_rows, stratify=strata[rest], random_state=config.split_seed
        )
        test = Split(source.train.inputs[held_out], source.train.targets[held_out])
    else:
        remaining = len(rows) - config.calibration_rows
        if remaining < max(config.train_rows, 2):
            raise InvalidConfig(
                f"data.train_rows is {config.train_rows} and data.calibration_rows {config.calibration_rows}; "
                f"{config.source} has {len(rows)} training rows"
            )
        train, calibration = rows[:remaining], rows[remaining:]
        if 0 < config.train_rows < remaining:
            train, _ = train_test_split(
                train, train_size=config.train_rows, stratify=strata[train], random_state=config.split_seed
            )
        test = Split(source.test.inputs, source.test.targets)
    return Splits(
        name=config.source,
        train=Split(source.train.inputs[train], source.train.targets[train], augment),
        calibration=Split(source.train.inputs[calibration], source.train.targets[calibration]),
        test=test,
        class_labels=source.class_labels,
        evaluation_rows=config.evaluation_rows,
    )
