"""Ray Serve: replicas as actors behind HTTP.

https://docs.ray.io/en/latest/serve/getting_started.html; tuned after …/serve/advanced-guides/performance.html and
…/serve/advanced-guides/dyn-req-batch.html.
"""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.peers import Body, options, sessions

PACKAGES = ("ray[serve]==2.60.0", "onnxruntime")
SETUPS = ("natural", "tuned")
PROTOCOL = "http"

# Tried for `tuned`, in images/s at 8 and 32 in parallel (2 cores, 2026-11-25; `natural` 47, 26, with 1 replica 40, 8):
# one replica with two callers, up to 8 requests a batch: HAProxy before it 209, 227; Ray's own proxy, optimised for
# throughput 95, 94, as it comes 82, 86; two replicas and Ray's proxy 91, 101.


def request(rows: NDArray[np.uint8], setup: str) -> Body:
    if setup == "natural":
        return Body("/", "application/json", json.dumps({"input": rows.tolist()}).encode())
    return Body("/", "application/octet-stream", rows.tobytes())


def probabilities(response: bytes, setup: str) -> NDArray[np.float32]:
    if setup == "natural":
        return np.array(json.loads(response)["probs"], np.float32)
    return np.frombuffer(response, np.float32).reshape(-1, 10)


def main() -> None:
    chosen = options(SETUPS)
    if chosen.setup == "tuned":
        # Read when Serve is imported. HAProxy comes with Ray's wheel and forwards to the replica's own HTTP server.
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0"  # or its end takes half a minute
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.2})
    class Natural:
        def __init__(self, models: str) -> None:
            self.ensemble = sessions.eight(models)

        async def __call__(self, request: Request) -> dict[str, Any]:
            rows = np.array((await request.json())["input"], np.uint8)
            return {"probs": self.ensemble(rows).tolist()}

    @serve.deployment(max_ongoing_requests=1000)
    class Tuned:
        def __init__(self, models: str) -> None:
            self.ensemble = sessions.fused(models, threads=1)
            self.executor = ThreadPoolExecutor(chosen.threads)

        @serve.batch(max_batch_size=8, batch_wait_timeout_s=0, max_concurrent_batches=chosen.threads)
        async def predict(self, requests: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
            batch, ends = np.concatenate(requests), np.cumsum([len(rows) for rows in requests])
            probs = await asyncio.get_running_loop().run_in_executor(self.executor, self.ensemble, batch)
            return np.split(probs, ends[:-1])

        async def __call__(self, request: Request) -> Response:
            probs = await self.predict(np.frombuffer(await request.body(), np.uint8).reshape(-1, 3, 32, 32))
            return Response(probs.tobytes(), media_type="application/octet-stream")

    ray.init(num_cpus=chosen.threads, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": chosen.port})
    deployment = Natural if chosen.setup == "natural" else Tuned
    serve.run(deployment.bind(str(chosen.models)), blocking=True)


if __name__ == "__main__":
    main()
