"""Runs an ensemble's members on a batch: which network gets which rows, and whose logits go where.

`steps` and `steps_at` are for batches, on the engine's lanes; `run` and `run_points` wait for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.networks.curve import Point
from serving.networks.engines.call import Call, Feeds, Network
from serving.networks.engines.engine import Engine
from serving.networks.engines.lanes import Steps
from serving.networks.members import Loaded, LoadedGroup, LoadedMember


@dataclass(frozen=True)
class _Part:
    rows: NDArray[np.intp] | slice  # a slice where a batch's rows are all wanted, for speed
    inputs: NDArray[np.generic]  # of these rows


@dataclass(frozen=True)
class _Job:
    """What one call answers. members: one, or those of a group."""

    members: int | slice
    network: Network
    feeds: Feeds
    part: _Part


class Executor:
    def __init__(self, engine: Engine, loaded: Loaded, classes: int) -> None:
        self._engine = engine
        self._members: Sequence[LoadedMember] = loaded.members
        self._groups: Sequence[LoadedGroup] = loaded.groups
        self._combined = loaded.combined
        self._classes = classes

    def close(self) -> None:
        self._members, self._groups, self._combined = (), (), None

    @property
    def ways(self) -> Sequence[bool]:
        """What `fused` can mean: each member alone, and in groups if there are any."""
        return (False, True) if self._groups else (False,)

    def warm_up(self, inputs: NDArray[np.generic]) -> None:
        """Every network on these rows, in every number of rows that the engine wants to have seen."""
        for rows in self._engine.batch_sizes(len(inputs)):
            for fused in self.ways:
                self.run(inputs[:rows], np.ones((len(self._members), rows), np.bool_), fused)

    def run(self, inputs: NDArray[np.generic], mask_MB: NDArray[np.bool_], fused: bool = True) -> NDArray[np.float32]:
        return self._engine.run(self.steps(inputs, mask_MB, fused))

    def run_points(self, inputs: NDArray[np.generic], points: Sequence[Point]) -> NDArray[np.float32]:
        return self._engine.run(self.steps_at(inputs, points))

    def steps(
        self, inputs: NDArray[np.generic], mask_MB: NDArray[np.bool_], fused: bool = True
    ) -> Steps[NDArray[np.float32]]:
        """Logits [M, B, C] of each member on the rows that the mask gives it; 0 elsewhere.

        fused: groups answer where all of their members are wanted, if there are any.
        """
        logits_MBC = np.zeros((*mask_MB.shape, self._classes), dtype=np.float32)
        jobs = self._jobs(inputs, mask_MB, fused)
        calls = [Call(job.network, job.part.inputs, job.feeds) for job in jobs]
        for job, logits in zip(jobs, (yield calls), strict=True):
            logits_MBC[job.members, job.part.rows] = logits
        return logits_MBC

    def steps_at(self, inputs: NDArray[np.generic], points: Sequence[Point]) -> Steps[NDArray[np.float32]]:
        """Logits [B, C], each row by the network at its own point of the curve.

        A run a row: t is continuous, so no two rows share a network. One run for all would need every operator of the
        graph with weights for each row (a convolution as a grouped one), and B times the weights in memory.
        """
        combined = self._combined
        assert combined is not None
        calls = [
            Call(combined.network, inputs[b : b + 1], combined.feeds(point.coefficients, point.statistics))
            for b, point in enumerate(points)
        ]
        return np.concatenate((yield calls))

    def _jobs(self, inputs: NDArray[np.generic], mask_MB: NDArray[np.bool_], fused: bool) -> list[_Job]:
        """Enough calls to keep every thread busy. Members that want the same rows share them."""
        wanting: dict[bytes, list[int]] = {}
        for member in np.flatnonzero(mask_MB.any(axis=1)).tolist():
            wanting.setdefault(mask_MB[member].tobytes(), []).append(member)
        networks = {rows: self._networks(members, fused) for rows, members in wanting.items()}
        pieces = -(-self._engine.threads // max(sum(map(len, networks.values())), 1))
        jobs: list[_Job] = []
        for rows, members in wanting.items():
            parts = _parts(inputs, mask_MB[members[0]], pieces)
            jobs += [_Job(*network, part) for part in parts for network in networks[rows]]
        return jobs

    def _networks(self, members: Sequence[int], fused: bool) -> list[tuple[int | slice, Network, Feeds]]:
        """Those that answer for these members, each once."""
        left = dict.fromkeys(members)
        found: list[tuple[int | slice, Network, Feeds]] = []
        for group in self._groups if fused else ():
            of_group = range(group.members.start, group.members.stop)
            if left.keys() >= set(of_group):
                found.append((group.members, group.network, {}))
                left = dict.fromkeys(member for member in left if member not in of_group)
        return found + [(m, self._members[m].network, self._members[m].feeds) for m in left]


def _parts(inputs: NDArray[np.generic], wanted_B: NDArray[np.bool_], pieces: int) -> list[_Part]:
    """The wanted rows in so many parts, or fewer; not copied if all are wanted."""
    if not wanted_B.all():
        rows = np.flatnonzero(wanted_B)
        return [_Part(rows[part], inputs[rows[part]]) for part in _slices(len(rows), pieces)]
    return [_Part(part, inputs if pieces == 1 else inputs[part]) for part in _slices(len(inputs), pieces)]


def _slices(rows: int, pieces: int) -> list[slice]:
    """Of sizes that differ by one at most; none is empty."""
    pieces = min(pieces, rows)
    return [slice(rows * i // pieces, rows * (i + 1) // pieces) for i in range(pieces)]
