"""The outputs of an answer: their types and shapes, and which of them a server gives.

All of them unless it was started to say less: `--labels-only`, `--round-probs`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT = ("probs", "entropy", "mutual_information")
LABEL = "label"


@dataclass(frozen=True)
class Output:
    datatype: str
    axes: str  # beside that of the rows: M, of varying length, and C

    def shape(self, classes: int) -> list[int]:
        return [-1, *(classes if axis == "C" else -1 for axis in self.axes)]


OUTPUTS = {
    "probs": Output("FP32", "C"),
    "entropy": Output("FP32", ""),
    "mutual_information": Output("FP32", ""),
    "member_probs": Output("FP32", "MC"),
    "energy": Output("FP32", ""),
    "members_run": Output("INT32", ""),
    "prediction_set": Output("BOOL", "C"),
    LABEL: Output("BYTES", ""),
}


@dataclass(frozen=True)
class Disclosure:
    """How much a server says."""

    decimals: int | None = None  # of every real number; None: full precision
    labels_only: bool = False

    @property
    def outputs(self) -> dict[str, Output]:
        return {LABEL: OUTPUTS[LABEL]} if self.labels_only else OUTPUTS

    @property
    def default_outputs(self) -> tuple[str, ...]:
        return (LABEL,) if self.labels_only else DEFAULT

    def probs(self, probs: NDArray[np.float64]) -> NDArray[np.float64]:
        """[..., C] at the precision that is told. Rows still sum to 1, and no class overtakes another.

        By largest remainders: all are rounded down, and what is missing goes to those that lost most.
        """
        if self.decimals is None:
            return probs
        scaled = probs * 10**self.decimals
        units = np.floor(scaled)
        missing = np.round(probs.sum(axis=-1, keepdims=True)) * 10**self.decimals - units.sum(axis=-1, keepdims=True)
        order = np.argsort(units - scaled, axis=-1, kind="stable")
        units += np.argsort(order, axis=-1, kind="stable") < missing
        return np.asarray(units / 10**self.decimals)

    @property
    def rounding(self) -> float:
        """How far a probability that is told may be from the exact one."""
        return 0.0 if self.decimals is None else 10.0**-self.decimals

    def reals(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values if self.decimals is None else values.round(self.decimals)


FULL = Disclosure()
