"""Runs an ensemble's members on a batch: which network gets which rows, and whose logits go where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.engines.engine import Call, Engine
from serving.members import LoadedMember


@dataclass(frozen=True)
class _Part:
    rows: NDArray[np.intp]
    inputs: NDArray[np.generic]  # of these rows


class Executor:
    """members: in the manifest's order."""

    def __init__(self, engine: Engine, members: Sequence[LoadedMember], classes: int) -> None:
        self._engine = engine
        self._members = members
        self._classes = classes

    def close(self) -> None:
        self._members = ()

    def warm_up(self, inputs: NDArray[np.generic]) -> None:
        """Every member on these rows, in every number of rows that the engine wants to have seen."""
        for rows in self._engine.batch_sizes(len(inputs)):
            self.run(inputs[:rows], np.ones((len(self._members), rows), np.bool_))

    def run(self, inputs: NDArray[np.generic], mask_MB: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Logits [M, B, C] of each member on the rows that the mask gives it; 0 elsewhere."""
        logits_MBC = np.zeros((*mask_MB.shape, self._classes), dtype=np.float32)
        jobs = self._jobs(inputs, mask_MB)
        calls = [Call(self._members[m].network, part.inputs, self._members[m].feeds) for m, part in jobs]
        for (m, part), logits_BC in zip(jobs, self._engine.run(calls), strict=True):
            logits_MBC[m, part.rows] = logits_BC
        return logits_MBC

    def _jobs(self, inputs: NDArray[np.generic], mask_MB: NDArray[np.bool_]) -> list[tuple[int, _Part]]:
        """Members and rows, enough pairs to keep every thread busy. Members that want the same rows share them."""
        wanting: dict[bytes, list[int]] = {}
        for member in np.flatnonzero(mask_MB.any(axis=1)).tolist():
            wanting.setdefault(mask_MB[member].tobytes(), []).append(member)
        pieces = -(-self._engine.threads // sum(map(len, wanting.values())))
        jobs: list[tuple[int, _Part]] = []
        for members in wanting.values():
            rows = np.flatnonzero(mask_MB[members[0]])
            wanted = inputs if len(rows) == len(inputs) else inputs[rows]
            pairs = zip(np.array_split(rows, pieces), np.array_split(wanted, pieces), strict=True)
            parts = [_Part(*pair) for pair in pairs if len(pair[0])]
            jobs += [(member, part) for part in parts for member in members]
        return jobs
