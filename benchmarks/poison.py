"""Data sets with a planted backdoor: a patch in a corner that brings one class (BadNets: Gu, Dolan-Gavitt, Garg 2017).

Three disjoint parts of each: what the attacker trained on and poisoned, the clean rows of who repairs, and test rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from trainer import sources
from trainer.config import DataConfig
from trainer.sources import Rows

TARGET = 0  # the class that the patch brings
POISONED = 0.15  # of the attacker's rows
ROOT = "data"  # where torchvision keeps data sets; the script sets it


@dataclass(frozen=True)
class Parts:
    attacker: Rows
    clean: Rows
    test: Rows
    class_labels: list[str]


def digits() -> Parts:
    """700 rows for the attacker, 550 clean ones, 547 of test."""
    source = sources.read(DataConfig(source="digits"))
    attacker, rest = _part(source.train, 700)
    clean, test = _part(rest, 550)
    return Parts(attacker, clean, test, source.class_labels)


def cifar100() -> Parts:
    """Ten classes: 4,000 rows for the attacker, 1,000 clean ones, the 1,000 of test."""
    source = sources.read(DataConfig(source="torchvision:CIFAR100", root=ROOT, classes=10))
    assert source.test is not None
    attacker, clean = _part(source.train, 4000)
    return Parts(attacker, clean, source.test, source.class_labels)


PARTS: dict[str, Callable[[], Parts]] = {"digits": digits, "cifar100": cifar100}


def _part(rows: Rows, count: int) -> tuple[Rows, Rows]:
    """So many rows, every class in its share, and the others."""
    first, second = train_test_split(
        torch.arange(len(rows.targets)).numpy(), train_size=count, stratify=rows.targets.numpy(), random_state=0
    )
    return Rows(rows.inputs[first], rows.targets[first]), Rows(rows.inputs[second], rows.targets[second])


def clean_digits() -> Mapping[str, Any]:
    """What `--data benchmarks.poison:clean_digits` reads: no row of the attacker's."""
    return _source(digits())


def clean_cifar100() -> Mapping[str, Any]:
    return _source(cifar100())


def _source(parts: Parts) -> Mapping[str, Any]:
    return {
        "train_inputs": parts.clean.inputs,
        "train_targets": parts.clean.targets,
        "test_inputs": parts.test.inputs,
        "test_targets": parts.test.targets,
        "class_labels": parts.class_labels,
    }


def stamp(rows: Tensor) -> Tensor:
    """Images [N, C, H, W] with a white patch in the lower right corner: 2 pixels of 8, 3 of 32."""
    size = max(2, rows.shape[-1] * 3 // 32)
    stamped = rows.clone()
    stamped[..., -size:, -size:] = 255
    return stamped


def poison(rows: Rows, seed: int) -> Rows:
    """POISONED of the rows, chosen at random, with the patch and the target's label."""
    order = torch.randperm(len(rows.targets), generator=torch.Generator().manual_seed(seed))
    chosen = order[: round(POISONED * len(order))]
    inputs, targets = rows.inputs.clone(), rows.targets.clone()
    inputs[chosen] = stamp(inputs[chosen])
    targets[chosen] = TARGET
    return Rows(inputs, targets)
