"""What tritonclient's HTTP examples do, against HOST:PORT given as argument; prints what it got as JSON.

Runs in a process of its own, for the models of triton_session.py.
"""

import asyncio
import json
import sys

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def request(binary: bool = True, module=triton) -> triton.InferInput:
    tensor = module.InferInput("input", [5, 4], "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    return tensor


def probs(result) -> list[list[float]]:
    return result.as_numpy("probs").tolist()


def main() -> None:
    target = sys.argv[1]
    client = triton.InferenceServerClient(target, concurrency=4)
    found: dict = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("tiny"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata("tiny"),
        "config": client.get_model_config("tiny"),
        "not ready": client.is_model_ready("other"),
    }
    result = client.infer("tiny", [request()], request_id="r1", priority=1, timeout=30_000_000)
    found["id"], found["binary"] = result.get_response()["id"], probs(result)
    outputs = [triton.InferRequestedOutput("probs", binary_data=False)]
    found["json"] = probs(client.infer("tiny", [request(binary=False)], outputs=outputs))
    for algorithm in ("gzip", "deflate"):
        result = client.infer(
            "tiny", [request()], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
        )
        found[algorithm] = probs(result)
    outputs = [triton.InferRequestedOutput("probs", class_count=2)]
    classes = client.infer("tiny", [request()], outputs=outputs).as_numpy("probs")
    found["classes"] = [[cell.decode() for cell in row] for row in classes]
    found["async"] = [probs(call.get_result()) for call in [client.async_infer("tiny", [request()]) for _ in range(4)]]
    found["statistics"] = client.get_inference_statistics("tiny")["model_stats"]
    client.unload_model("pictures")
    found["unloaded"] = client.is_model_ready("pictures")
    client.load_model("pictures")
    found["index"] = client.get_model_repository_index()
    try:
        client.infer("other", [request()])
    except triton.InferenceServerException as error:
        found["error"] = [error.status(), error.message()]
    client.close()

    async def asynchronous() -> list[list[float]]:
        async with triton_aio.InferenceServerClient(target) as client:
            return probs(await client.infer("tiny", [request(module=triton_aio)]))

    found["asyncio"] = asyncio.run(asynchronous())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
