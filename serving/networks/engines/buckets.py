"""Batch sizes that a device has seen. A batch is filled up to the next one: a new size costs a search of kernels."""

from bisect import bisect_left
from collections.abc import Sequence


def sizes(max_rows: int) -> list[int]:
    """1, 2, 4, … and `max_rows`: less than half of a batch is ever padding."""
    return sorted({2**i for i in range(max_rows.bit_length())} | {max_rows})


def fitting(sizes: Sequence[int], rows: int) -> int:
    """The least size that holds so many rows. Raises ValueError beyond the last."""
    if rows > sizes[-1]:
        raise ValueError(f"{rows} rows came; this engine was made for {sizes[-1]} at most")
    return sizes[bisect_left(sizes, rows)]
