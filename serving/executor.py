"""Runs members on a batch: one single-threaded session a member, and one pool of threads for all of them.

A session that owns a thread pool, eight times, is eight pools that fight over the same cores (31–71 ms instead of
3.2 at batch 1 on two cores). So a session runs on the thread that calls it, and the pool's size is the CPU quota.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from protos.stored_ensemble import StoredEnsemble
from serving.device import CPU, CUDA
from serving.errors import StartupError

# Takes [B, ...], gives logits [B, C].
Run = Callable[[NDArray[np.generic]], NDArray[np.float32]]


class Executor:
    """members: in the manifest's order. threads: that run members, the calling one among them."""

    def __init__(self, members: Sequence[Run], classes: int, threads: int) -> None:
        self._members = members
        self._classes = classes
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="member") if threads > 1 else None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def run(self, inputs: NDArray[np.generic], mask_MB: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Logits [M, B, C] of each member on the rows that the mask gives it; 0 elsewhere."""
        logits_MBC = np.zeros((*mask_MB.shape, self._classes), dtype=np.float32)
        jobs = deque(self._jobs(mask_MB))

        def work() -> None:
            while True:
                try:
                    member, rows = jobs.popleft()
                except IndexError:
                    return
                logits_MBC[member, rows] = self._members[member](inputs[rows])

        helpers = min(self._threads, len(jobs)) - 1
        futures = [self._pool.submit(work) for _ in range(helpers)] if self._pool else []
        try:
            work()
        finally:
            for future in futures:
                future.result()
        return logits_MBC

    def _jobs(self, mask_MB: NDArray[np.bool_]) -> list[tuple[int, Any]]:
        """(member, rows) pairs, enough of them to keep every thread busy."""
        active = np.flatnonzero(mask_MB.any(axis=1)).tolist()
        pieces = -(-self._threads // len(active))
        jobs: list[tuple[int, Any]] = []
        for member in active:
            if mask_MB[member].all():
                # Slices: the rows are not copied.
                bounds = np.linspace(0, mask_MB.shape[1], pieces + 1).astype(int).tolist()
                jobs += [(member, slice(a, b)) for a, b in pairwise(bounds) if a < b]
            else:
                rows = np.flatnonzero(mask_MB[member])
                jobs += [(member, part) for part in np.array_split(rows, pieces) if len(part)]
        return jobs


def load_members(stored: StoredEnsemble, provider: str, threads: int) -> list[Run]:
    """A session for each member, from the verified bytes. Raises StartupError if the device was not really used."""
    if provider == CUDA:
        onnxruntime.preload_dlls()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda member: _session(stored, member, provider), stored.manifest.members))


def _session(stored: StoredEnsemble, member: Any, provider: str) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers: list[Any] = [CPU]
    if provider == CUDA:
        # EXHAUSTIVE, the default, searches anew for every batch size that it has not seen.
        providers = [(CUDA, {"cudnn_conv_algo_search": "HEURISTIC"}), CPU]
    try:
        session = onnxruntime.InferenceSession(stored.model(member).SerializeToString(), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise StartupError(f"ONNX Runtime cannot load member '{member.id}': {str(error).splitlines()[0]}") from error
    if (used := session.get_providers()[0]) != provider:
        raise StartupError(f"member '{member.id}' was to run on {provider}, but ONNX Runtime chose {used}")
    name = stored.manifest.input.name

    def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        return np.asarray(session.run(["logits"], {name: inputs})[0])

    return run
