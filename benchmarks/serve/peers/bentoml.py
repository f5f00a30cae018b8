"""BentoML: a service class behind HTTP and JSON.

https://docs.bentoml.com/en/latest/get-started/hello-world.html, tuned after …/get-started/adaptive-batching.html and
…/build-with-bentoml/parallelize-requests.html.
"""

import base64
import json
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.peers import Body, options, sessions

try:
    import bentoml
except ImportError:  # the harness asks this server and has not installed it
    bentoml = None

PACKAGES = ("bentoml==1.4.40", "onnxruntime")
SETUPS = ("natural", "tuned")
PROTOCOL = "http"

# Tried for `tuned`, in images/s at 8 and 32 in parallel (2 cores, 2026-11-25; `natural` 73, 74): one worker with two
# threads, batches of up to 16 rows 210, 224, up to 8 191, 200; two workers with a thread each 128, 140, since nearly
# all connections reach the same one.


def request(rows: NDArray[np.uint8], setup: str) -> Body:
    """tuned: BentoML's batches take JSON only, and a text is read faster than 3,072 numbers."""
    values = rows.tolist() if setup == "natural" else [base64.b64encode(row.tobytes()).decode() for row in rows]
    return Body("/predict", "application/json", json.dumps({"rows": values}).encode())


def probabilities(response: bytes, setup: str) -> NDArray[np.float32]:
    return np.array(json.loads(response), np.float32)


if bentoml:

    @bentoml.service
    class Natural:
        def __init__(self) -> None:
            self.ensemble = sessions.eight(os.environ["MODELS"])

        @bentoml.api
        def predict(self, rows: np.ndarray) -> np.ndarray:
            return self.ensemble(rows.astype(np.uint8))

    @bentoml.service(metrics={"enabled": False}, logging={"access": {"enabled": False}})
    class Tuned:
        def __init__(self) -> None:
            self.ensemble = sessions.fused(os.environ["MODELS"], int(os.environ["THREADS"]))

        @bentoml.api(batchable=True, max_batch_size=16)
        def predict(self, rows: list[str]) -> np.ndarray:
            pixels = b"".join(map(base64.b64decode, rows))
            return self.ensemble(np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32))


def main() -> None:
    chosen = options(SETUPS)
    os.environ |= {"MODELS": str(chosen.models), "THREADS": str(chosen.threads), "BENTOML_DO_NOT_TRACK": "True"}
    service = f"benchmarks.serve.peers.bentoml:{chosen.setup.capitalize()}"
    command = Path(sys.executable).with_name("bentoml")
    os.execv(command, [str(command), "serve", service, "--host", "127.0.0.1", "--port", str(chosen.port)])


if __name__ == "__main__":
    main()
