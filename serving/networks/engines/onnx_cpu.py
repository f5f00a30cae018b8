"""ONNX Runtime on the CPU: a single-threaded session a network, and one pool of threads for all of them.

A session that owns a thread pool, eight times, is eight pools that fight over the same cores (31–71 ms instead of
3.2 at batch 1 on two cores). So a session runs on the thread that calls it, and the pool's size is the CPU quota.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from protos.stored_ensemble import Tensors
from serving.errors import StartupError
from serving.networks.engines.call import Feeds, Network
from serving.networks.engines.engine import Engine
from serving.networks.memory import return_large_blocks
from serving.networks.skeleton import Skeleton

CPU = "CPUExecutionProvider"


class OnnxCpu(Engine):
    """arena: one for all networks, which keeps the scratch of the largest batches; without it malloc gives it back."""

    def __init__(self, threads: int, arena: bool = True) -> None:
        super().__init__("onnxruntime-cpu", threads)
        self._arena = arena
        if arena:
            _share_arena()
        else:
            return_large_blocks()

    def batch_sizes(self, max_rows: int) -> list[int]:
        """None: the probe has run every member, and the first batch of another size costs 1 % (docs/log.md)."""
        return []

    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        options = session_options()
        options.enable_cpu_mem_arena = self._arena
        options.add_session_config_entry("session.use_env_allocators", "1" if self._arena else "0")
        session = open_session(skeleton.data, tensors, options, [CPU])

        rows = skeleton.input_name

        def run(inputs: NDArray[np.generic], feeds: Feeds) -> NDArray[np.float32]:
            return np.asarray(session.run(["logits"], {rows: inputs, **feeds})[0])

        return run


@functools.cache
def _share_arena() -> None:
    """Once a process. If each network kept the scratch of its largest batch, 8 took 150 MiB in place of 44."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1}))


def session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def open_session(
    model: bytes,
    tensors: Mapping[str, NDArray[np.generic]],
    options: onnxruntime.SessionOptions,
    providers: Sequence[Any],
) -> onnxruntime.InferenceSession:
    """A session on the first of the providers, and no other. Raises StartupError.

    tensors: of the initializers that the model lacks; given before anything is optimised, copied, and not kept.
    """
    names = sorted(tensors)
    # Not `ascontiguousarray`, which gives scalars an axis.
    options.add_external_initializers(
        names, [OrtValue.ortvalue_from_numpy(np.asarray(tensors[name], order="C")) for name in names]
    )
    wanted = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise StartupError(f"ONNX Runtime cannot load the network: {str(error).splitlines()[0]}") from error
    # It falls back to the CPU in silence.
    if (used := session.get_providers()[0]) != wanted:
        raise StartupError(f"the network was to run on {wanted}, but ONNX Runtime chose {used}")
    return session
