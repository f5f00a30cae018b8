"""Triton Inference Server as PyTriton bundles it: gRPC and the batcher in C++, the model in Python.

https://triton-inference-server.github.io/pytriton/latest/quick_start/; tuned after …/binding_models/ (several
instances) and …/binding_configuration/ (batcher).
"""

import os
import sysconfig
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.peers import Body, oip, options, sessions

PACKAGES = ("nvidia-pytriton==0.7.0", "onnxruntime")
SETUPS = ("natural", "tuned")
PROTOCOL = "oip-grpc"

# Tried for `tuned`, in images/s at 8 and 32 in parallel (2 cores, 2026-11-25; `natural` 112, 79): one instance with two
# threads, batches of up to 16 237, 280; two instances with a thread each, up to 16 212, 270, with 8 as preferred size
# 221, 278, with 4 233, 240, with 4 and 8 236, 264.


def request(rows: NDArray[np.uint8], setup: str) -> Body:
    return oip.request(rows)


def probabilities(response: bytes, setup: str) -> NDArray[np.float32]:
    return oip.probabilities(response)


def main() -> None:
    from pytriton.decorators import batch
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    chosen = options(SETUPS)

    def function(ensemble: sessions.Ensemble) -> Callable[..., dict[str, NDArray[np.float32]]]:
        @batch
        def infer(input: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            return {"probs": ensemble(input)}

        return infer

    if chosen.setup == "natural":
        function_or_functions, largest_batch = function(sessions.eight(chosen.models)), 128
    else:
        function_or_functions, largest_batch = function(sessions.fused(chosen.models, chosen.threads)), 16
    # Triton embeds libpython; with another release of it than this interpreter's standard library it does not start.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    with Triton(config=TritonConfig(grpc_port=chosen.port, allow_http=False, allow_metrics=False)) as triton:
        triton.bind(
            model_name="ensemble",
            infer_func=function_or_functions,
            inputs=[Tensor(name="input", dtype=np.uint8, shape=(3, 32, 32))],
            outputs=[Tensor(name="probs", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=largest_batch),
        )
        triton.serve()


if __name__ == "__main__":
    main()
