"""Data sets and their three splits: train, calibration, test. Inputs stay raw: normalisation travels in the graph."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from trainer.config import DataConfig
from trainer.errors import InvalidConfig


@dataclass(frozen=True)
class Split:
    inputs: Tensor  # raw, as a client sends them: [N, ...]
    targets: Tensor  # [N] int64, a class each

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: every row once, in an order drawn from torch's global generator; the last batch may be short."""
        order = torch.randperm(len(self))
        for rows in order.split(size):
            yield self.inputs[rows], self.targets[rows]

    def batch_count(self, size: int) -> int:
        """Iterations in an epoch. Raises InvalidConfig if a batch would hold one row: BatchNorm cannot train on it."""
        if len(self) % size == 1 or size == 1:
            raise InvalidConfig(f"sgd.batch_size {size} leaves a batch of one of {len(self)} rows; choose another")
        return -(-len(self) // size)


@dataclass(frozen=True)
class Splits:
    name: str
    train: Split
    calibration: Split
    test: Split
    class_labels: list[str]
    mean: list[float]  # of the training split, by channel, in raw units
    std: list[float]

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


def load(config: DataConfig) -> Splits:
    """The data set's splits, stratified by class. Raises InvalidConfig for an unknown source or too many rows."""
    if config.source not in SOURCES:
        raise InvalidConfig(f"data.source is '{config.source}'; expected one of {', '.join(SOURCES)}")
    inputs, targets, class_labels = SOURCES[config.source]()
    wanted = config.train_rows + config.calibration_rows
    if wanted > len(targets) - len(class_labels):
        raise InvalidConfig(
            f"data.train_rows + data.calibration_rows is {wanted}; {config.source} has {len(targets)} rows, "
            f"of which the test needs {len(class_labels)} or more"
        )
    for name in ("train_rows", "calibration_rows"):
        if getattr(config, name) < len(class_labels):
            raise InvalidConfig(
                f"data.{name} is {getattr(config, name)}; expected {len(class_labels)}, one a class, or more"
            )
    rows = np.arange(len(targets))
    rest, test = train_test_split(rows, train_size=wanted, stratify=targets, random_state=config.split_seed)
    train, calibration = train_test_split(
        rest, train_size=config.train_rows, stratify=targets[rest], random_state=config.split_seed
    )
    pixels = inputs[train].astype(np.float64)
    other_axes = tuple(axis for axis in range(pixels.ndim) if axis != 1)

    def split(rows: np.ndarray) -> Split:
        return Split(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]))

    return Splits(
        name=config.source,
        train=split(train),
        calibration=split(calibration),
        test=split(test),
        class_labels=class_labels,
        mean=pixels.mean(other_axes).tolist(),
        std=pixels.std(other_axes).tolist(),
    )


def _digits() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """1,797 scans as uint8 [N, 1, 8, 8]: the data set's 0 … 16 ink levels spread over 0 … 255, as in any image file."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return images, bunch.target.astype(np.int64), [str(label) for label in bunch.target_names]


SOURCES = {"digits": _digits}
