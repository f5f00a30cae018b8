"""Chooses where members run, before ONNX Runtime can fall back in silence."""

import ctypes
import logging

import onnxruntime

from serving.errors import StartupError

logger = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


def choose(device: str) -> str:
    """The execution provider for "auto", "cpu" or "cuda". Raises StartupError for a cuda that is not there."""
    if device == "cpu":
        return CPU
    missing = _missing_for_cuda()
    if missing is None:
        return CUDA
    if device == "cuda":
        raise StartupError(f"--device cuda: {missing}")
    logger.info("device=cpu reason=%r", missing)
    return CPU


def _missing_for_cuda() -> str | None:
    """What keeps CUDA from working, as far as can be told without a session; None if nothing."""
    if CUDA not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider; install onnxruntime-gpu"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    count = ctypes.c_int(0)
    if (code := driver.cuInit(0)) != 0 or (code := driver.cuDeviceGetCount(ctypes.byref(count))) != 0:
        return f"the NVIDIA driver answered with error {code}"
    if count.value == 0:
        return "the NVIDIA driver sees no GPU"
    return None
