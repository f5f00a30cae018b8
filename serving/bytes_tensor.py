"""BYTES tensors in raw contents: before each element its length, 4 bytes, little-endian."""

import struct
from collections.abc import Iterable


def pack(elements: Iterable[bytes]) -> bytes:
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def unpack(data: bytes, count: int) -> list[bytes]:
    """The elements. Raises ValueError unless there are `count` of them and nothing else."""
    elements: list[bytes] = []
    start = 0
    for i in range(count):
        if start + 4 > len(data):
            raise ValueError(f"{len(data)} bytes end after {i} elements; expected {count}")
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if length > len(data) - start:
            raise ValueError(f"element {i} says it has {length} bytes; {len(data) - start} are left")
        elements.append(data[start : start + length])
        start += length
    if start != len(data):
        raise ValueError(f"{len(data) - start} bytes are left after {count} elements")
    return elements
