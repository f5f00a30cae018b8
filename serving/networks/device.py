"""Chooses the engine, before ONNX Runtime can fall back in silence, and says why."""

import ctypes
import importlib.util
import logging

import onnxruntime

from serving.errors import StartupError
from serving.networks.engines.engine import Engine
from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.networks.engines.onnx_cuda import CUDA, OnnxCuda

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("auto", "onnxruntime", "tensorrt", "openvino")


def choose(
    device: str,
    engine: str = "auto",
    precision: str = "fp32",
    threads: int = 1,
    max_batch_rows: int = 64,
    compact: bool = False,
    cuda_graphs: bool = False,
) -> Engine:
    """The engine for these settings. Raises StartupError for what cannot be had, with what is missing.

    threads: of a CPU engine. max_batch_rows: the most rows that a network will get. compact: memory counts, not time.
    """
    on_gpu, reason = _place(device, engine)
    if on_gpu:
        chosen: Engine = OnnxCuda(precision, max_batch_rows, tensorrt=engine == "tensorrt", cuda_graphs=cuda_graphs)
    else:
        chosen = _on_cpu(engine, precision, threads, compact)
    logger.info("engine=%s precision=%s threads=%d reason=%r", chosen.name, precision, chosen.threads, reason)
    return chosen


def _on_cpu(engine: str, precision: str, threads: int, compact: bool) -> Engine:
    if engine == "openvino" or (engine == "auto" and precision != "fp32"):
        if importlib.util.find_spec("openvino") is None:
            asked = "--engine openvino" if engine == "openvino" else f"--precision {precision} on a CPU"
            raise StartupError(f"{asked} needs OpenVINO, which is not installed: pip install 'thalweg[openvino]'")
        from serving.networks.engines.openvino_cpu import OpenVinoCpu

        return OpenVinoCpu(threads, precision)
    if precision != "fp32":
        raise StartupError(f"--precision {precision}: ONNX Runtime has fp32 alone on a CPU; expected --engine openvino")
    return OnnxCpu(threads, arena=not compact)


def _place(device: str, engine: str) -> tuple[bool, str]:
    """Whether a GPU is used, and why."""
    if engine == "openvino":
        if device == "cuda":
            raise StartupError("--device cuda with --engine openvino, which runs on CPUs; expected another of the two")
        return False, "--engine openvino"
    if device == "cpu":
        if engine == "tensorrt":
            raise StartupError("--device cpu with --engine tensorrt, which needs a GPU; expected another of the two")
        return False, "--device cpu"
    missing = _missing_for_cuda()
    if missing is None:
        return True, f"--device {device}, and there is a GPU"
    if device == "cuda" or engine == "tensorrt":
        asked = "--device cuda" if device == "cuda" else "--engine tensorrt"
        raise StartupError(f"{asked}: {missing}")
    return False, missing


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
