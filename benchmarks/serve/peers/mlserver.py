"""MLServer: gRPC on asyncio, set up by a folder of settings.

https://docs.seldon.ai/mlserver/user-guide/custom; tuned after …/user-guide/parallel-inference,
…/user-guide/adaptive-batching and …/reference/settings.
"""

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.peers import Body, oip, options, sessions

try:
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
except ImportError:  # the harness asks this server and has not installed it
    MLModel = object

PACKAGES = ("mlserver==1.7.1", "uvloop==0.21.0", "onnxruntime")  # its workers do not start with uvloop 0.22 and later
SETUPS = ("natural", "tuned")
PROTOCOL = "oip-grpc"

# Tried for `tuned`, in images/s at 8 and 32 in parallel (2 cores, 2026-11-25; `natural` 65, 68): no worker processes,
# two threads, no batches 154, 170; batches of up to 4 requests within 1 ms 244, 242, within 5 ms 232, 250; up to 8
# within 2 ms 228, 251, within 5 ms 137 (a batch that is not full waits). A caller who leaves breaks the batch that
# holds its request: the others in it get no answer until their deadline.


def request(rows: NDArray[np.uint8], setup: str) -> Body:
    """tuned: a row is one element of type BYTES; of UINT8, MLServer makes a list of 3,072 Python numbers."""
    if setup == "natural":
        return oip.request(rows)
    from protos import open_inference_grpc_pb2 as pb

    message = pb.ModelInferRequest(model_name="ensemble")
    message.inputs.add(name="input", datatype="BYTES", shape=[len(rows)])
    elements = [row.tobytes() for row in rows]
    message.raw_input_contents.append(b"".join(len(each).to_bytes(4, "little") + each for each in elements))
    return Body(oip.PATH, "application/grpc", message.SerializeToString())


def probabilities(response: bytes, setup: str) -> NDArray[np.float32]:
    return oip.probabilities(response)


class Natural(MLModel):
    async def load(self) -> bool:
        self.ensemble = sessions.eight(self.settings.parameters.uri)
        return True

    async def predict(self, payload: "InferenceRequest") -> "InferenceResponse":
        probs = self.ensemble(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probs", probs)])


class Tuned(MLModel):
    async def load(self) -> bool:
        self.ensemble = sessions.fused(self.settings.parameters.uri, threads=1)
        self.executor = ThreadPoolExecutor(self.settings.parameters.extra["threads"])
        return True

    async def predict(self, payload: "InferenceRequest") -> "InferenceResponse":
        rows = np.frombuffer(b"".join(payload.inputs[0].data.root), np.uint8).reshape(-1, 3, 32, 32)
        probs = await asyncio.get_running_loop().run_in_executor(self.executor, self.ensemble, rows)
        output = ResponseOutput(name="probs", datatype="FP32", shape=list(probs.shape), data=probs.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])


def main() -> None:
    from mlserver.cli import main as command_line

    chosen = options(SETUPS)
    with TemporaryDirectory() as folder:
        settings = {"host": "127.0.0.1", "grpc_port": chosen.port, "http_port": 0, "metrics_port": 0}
        settings |= {"metrics_dir": folder, "environments_dir": folder}  # else in the working directory
        model = {
            "name": "ensemble",
            "implementation": f"{__spec__.name}.{chosen.setup.capitalize()}",
            "parameters": {"uri": str(chosen.models), "extra": {"threads": chosen.threads}},
        }
        if chosen.setup == "tuned":
            settings |= {"debug": False, "parallel_workers": 0, "metrics_endpoint": None}
            model |= {"max_batch_size": 4, "max_batch_time": 0.001}
        Path(folder, "settings.json").write_text(json.dumps(settings))
        Path(folder, "model-settings.json").write_text(json.dumps(model))
        sys.argv = ["mlserver", "start", folder]
        command_line()


if __name__ == "__main__":
    main()
