"""LitServe: FastAPI in front of worker processes.

https://lightning.ai/docs/litserve/home; tuned after …/features/batching and …/api-reference/litserver.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.peers import Body, options, sessions

try:
    import fastapi
    from litserve import LitAPI, LitServer

    Bytes = Annotated[bytes, fastapi.Body()]
except ImportError:  # the harness asks this server and has not installed it
    LitAPI, Bytes = object, bytes

PACKAGES = ("litserve==0.2.19", "onnxruntime")
SETUPS = ("natural", "tuned")
PROTOCOL = "http"

# Tried for `tuned`, in images/s at 8 and 32 in parallel (2 cores, 2026-11-25; `natural` 62, 58): two workers with a
# thread each, up to 8 requests within 2 ms 238, 261, within 0.5 ms 215, 247; up to 4 231, 246; one front process 206,
# 261; `fast_queue` 218, 237, with up to 4 224, 248; one worker with two threads, up to 16, `fast_queue` 214, 238.


def request(rows: NDArray[np.uint8], setup: str) -> Body:
    if setup == "natural":
        return Body("/predict", "application/json", json.dumps({"input": rows.tolist()}).encode())
    return Body("/predict", "application/octet-stream", rows.tobytes())


def probabilities(response: bytes, setup: str) -> NDArray[np.float32]:
    if setup == "natural":
        return np.array(json.loads(response)["probs"], np.float32)
    return np.frombuffer(response, np.float32).reshape(-1, 10)


class Natural(LitAPI):
    def __init__(self, models: Path) -> None:
        super().__init__()
        self.models = models

    def setup(self, device: str) -> None:
        self.ensemble = sessions.eight(self.models)

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.uint8]:
        return np.array(request["input"], np.uint8)

    def predict(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.ensemble(rows)

    def encode_response(self, probs: NDArray[np.float32]) -> dict[str, Any]:
        return {"probs": probs.tolist()}


class Tuned(LitAPI):
    def __init__(self, models: Path) -> None:
        super().__init__(max_batch_size=8, batch_timeout=0.002)
        self.models = models

    def setup(self, device: str) -> None:
        self.ensemble = sessions.fused(self.models, threads=1)

    def decode_request(self, request: Bytes) -> NDArray[np.uint8]:
        return np.frombuffer(request, np.uint8).reshape(-1, 3, 32, 32)

    def batch(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        return inputs  # of different numbers of rows

    def predict(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        ends = np.cumsum([len(rows) for rows in inputs])
        return np.split(self.ensemble(np.concatenate(inputs)), ends[:-1])

    def unbatch(self, output: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        return output

    def encode_response(self, probs: NDArray[np.float32]) -> "fastapi.Response":
        return fastapi.Response(probs.tobytes(), media_type="application/octet-stream")


def main() -> None:
    chosen = options(SETUPS)
    if chosen.setup == "natural":
        server, settings = LitServer(Natural(chosen.models), accelerator="cpu"), {}
    else:
        api = Tuned(chosen.models)
        server = LitServer(api, accelerator="cpu", workers_per_device=chosen.threads)
        settings = {"log_level": "warning", "access_log": False}
    server.run(host="127.0.0.1", port=chosen.port, generate_client_file=False, **settings)


if __name__ == "__main__":
    main()
