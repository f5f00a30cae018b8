"""Rows with the trigger of a known backdoor, made by a function of the user's."""

from dataclasses import dataclass

import torch

from trainer.data import Split, Splits
from trainer.errors import InvalidConfig
from trainer.reference import first_line, resolve

SPLITS = ("calibration", "test")  # held out from the repair


@dataclass(frozen=True)
class Backdoor:
    target: int  # the class that the trigger should bring
    rows: dict[str, Split]  # by name of SPLITS: those of all other classes, each with the trigger


def load(reference: str, target: str, splits: Splits) -> Backdoor:
    """reference: MODULE:FUNCTION or FILE.py:FUNCTION, raw rows [N, ...] to rows of that shape and type, triggered.

    target: a class label. Raises InvalidConfig for what is none, and for a function that fails or changes nothing.
    """
    if target not in splits.class_labels:
        raise InvalidConfig(f"--target is '{target}'; expected a class of {splits.name}: {_few(splits.class_labels)}")
    function, number = resolve(reference, "--trigger"), splits.class_labels.index(target)
    rows = {}
    for name in SPLITS:
        split = splits.measured[name]
        others = split.targets != number
        clean, targets = split.inputs[others], split.targets[others]
        if not len(targets):
            raise InvalidConfig(f"--target is '{target}', the class of every {name} row; expected others too")
        try:
            triggered = torch.as_tensor(function(clean.clone()))  # a function may write into what it gets
        except Exception as error:  # it is the user's code
            raise InvalidConfig(f"--trigger '{reference}' failed: {first_line(error)}") from error
        if (triggered.shape, triggered.dtype) != (clean.shape, clean.dtype):
            raise InvalidConfig(
                f"--trigger '{reference}' made {list(triggered.shape)}, {triggered.dtype} of {list(clean.shape)}, "
                f"{clean.dtype}; expected the same"
            )
        if torch.equal(triggered, clean):
            raise InvalidConfig(f"--trigger '{reference}' changed no {name} row")
        rows[name] = Split(triggered, targets)
    return Backdoor(number, rows)


def _few(labels: list[str]) -> str:
    return ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
