"""The ensemble as a server's author loads it: eight ONNX files as they come, or one file of all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEMBERS = 8

# uint8 [B, 3, 32, 32] → float32 [B, 10]
Ensemble = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def eight(models: str | Path) -> Ensemble:
    """A session a file with ONNX Runtime's defaults, one after the other; the mean of their softmax in numpy."""
    import onnxruntime

    sessions = [onnxruntime.InferenceSession(Path(models, f"member-{i}.onnx")) for i in range(MEMBERS)]

    def probabilities(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits_MBC = np.stack([session.run(["logits"], {"input": rows})[0] for session in sessions])
        powers_MBC = np.exp(logits_MBC - logits_MBC.max(axis=-1, keepdims=True))
        return (powers_MBC / powers_MBC.sum(axis=-1, keepdims=True)).mean(axis=0)

    return probabilities


def fused(models: str | Path, threads: int) -> Ensemble:
    """One session of all members, to be called by as many callers as there are CPUs to `threads`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(Path(models, "fused.onnx"), settings)

    def probabilities(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        return session.run(["probs"], {"input": rows})[0]

    return probabilities
