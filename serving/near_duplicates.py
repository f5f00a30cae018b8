"""Counts rows that are close to an earlier row of the same client: what attacks that only ask look like.

They change a picture a little at a time and ask again. A row is cut into segments; each, in coarse bins and at its
place, has a hash, which is looked up and kept. A row most of whose hashes have been there before is a near duplicate.
After Blacklight (Li et al. 2022), with segments that keep their place and one table of hashes in place of a list of
rows; the idea of watching a client's queries is of Chen, Carlini, Wagner 2019. A metric, not a wall: docs/operations.md
says how it is evaded.
"""

import hashlib
import secrets

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

LEAST_VALUES = 64  # of a row: of a few numbers many are alike by nature
SEGMENTS = 32
SHORTEST, LONGEST = 8, 24  # values in a segment: more make false alarms rare, fewer outlast noise; 768 are read at most
SLOT_BITS = 16  # log₂ of the hashes that are kept for each place: a row is forgotten after about as many others
NEAR = 0.5  # of a row's hashes
FEWEST = 4  # hashes of a row; a segment of one colour has none, since every picture has some


class NearDuplicates:
    """Of one model. In 8 MiB, whatever the number of clients and rows."""

    def __init__(self, row_values: int, counter: Counter) -> None:
        """row_values: in a row, at least LEAST_VALUES."""
        length = min(max(row_values // SEGMENTS, SHORTEST), LONGEST)
        starts = np.linspace(0, row_values - length, SEGMENTS).round().astype(np.intp)
        self._columns_SL = starts[:, None] + np.arange(length)
        # Unknown to clients, or they could make rows collide: a hash is Σ factor · bin modulo 2^64, whose upper bits
        # are universal.
        self._factors_SL = np.random.default_rng().integers(0, 2**64 - 1, self._columns_SL.shape, np.uint64)
        self._key = secrets.token_bytes(16)
        self._kept = np.zeros((SEGMENTS, 2**SLOT_BITS), np.uint32)
        self._counter = counter

    def observe(self, client: str, inputs: NDArray[np.generic]) -> None:
        """inputs: a request's rows, [B, ...]."""
        if count := int(self.near(client, inputs).sum()):
            self._counter.inc(count)

    def near(self, client: str, inputs: NDArray[np.generic]) -> NDArray[np.bool_]:
        """[B]: which rows are close to an earlier one of the client, of this request or of one before it."""
        bins_BSL = _bins(inputs.reshape(len(inputs), -1)[:, self._columns_SL])
        told_BS = (bins_BSL != bins_BSL[..., :1]).any(-1)
        hashes_BS = np.einsum("bsl,sl->bs", bins_BSL.astype(np.uint64), self._factors_SL) + self._salt(client)
        slots_BS = (hashes_BS >> np.uint64(64 - SLOT_BITS)).astype(np.intp)
        kept_BS = (hashes_BS >> np.uint64(16)).astype(np.uint32)
        places_S = np.arange(SEGMENTS)
        known_BS = (self._kept[places_S, slots_BS] == kept_BS) | _repeats(hashes_BS)
        self._kept[places_S, slots_BS] = kept_BS
        told_B = told_BS.sum(1)
        return np.asarray((told_B >= FEWEST) & ((known_BS & told_BS).sum(1) >= NEAR * told_B))

    def _salt(self, client: str) -> np.uint64:
        """Added to hashes, so that clients who share the table do not meet in it."""
        digest = hashlib.blake2b(client.encode(), key=self._key, digest_size=8).digest()
        return np.uint64(int.from_bytes(digest))


def _bins(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Sixteenths of the range of a pixel; of reals, whose range nobody knows, sign, exponent and two bits more."""
    if values.dtype == np.uint8:
        return np.asarray(np.right_shift(values, 4))
    if values.dtype.kind == "f":
        return np.asarray(np.right_shift(values.astype(np.float32).view(np.uint32), 21))
    return values


def _repeats(hashes_BS: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of them an earlier row of the array has as well."""
    if len(hashes_BS) == 1:
        return np.zeros(hashes_BS.shape, np.bool_)  # sooner than to find out
    _, first, inverse = np.unique(hashes_BS, return_index=True, return_inverse=True)
    return np.asarray(first[inverse].reshape(hashes_BS.shape) < np.arange(hashes_BS.size).reshape(hashes_BS.shape))
