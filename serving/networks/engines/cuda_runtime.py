"""Calls to the CUDA runtime that ONNX Runtime has no name for: a stream for all sessions, pinned and free memory."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import StartupError

LIBRARIES = ("libcudart.so.13", "libcudart.so.12")


class CudaRuntime:
    """Raises StartupError if the library is missing, or refuses."""

    def __init__(self) -> None:
        self._library = _open()

    def stream(self) -> int:
        """The address of a new stream, which lives as long as the process.

        Copies on the default stream wait for it, and it for them.
        """
        stream = ctypes.c_void_p()
        self._check("cudaStreamCreate", self._library.cudaStreamCreate(ctypes.byref(stream)))
        assert stream.value is not None
        return stream.value

    def pin(self, array: NDArray[np.generic]) -> None:
        """Fixes the array's pages in memory. The array must live as long as the process."""
        code = self._library.cudaHostRegister(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 0)
        self._check("cudaHostRegister", code)

    def memory(self) -> tuple[int, int]:
        """Used and free bytes of the device, whoever uses them."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._check("cudaMemGetInfo", self._library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return total.value - free.value, free.value

    def _check(self, call: str, code: int) -> None:
        if code:
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            raise StartupError(f"{call} failed with error {code}: {self._library.cudaGetErrorString(code).decode()}")


def _open() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise StartupError(f"the CUDA runtime is missing: none of {', '.join(LIBRARIES)} can be loaded")
