"""Everything that tritonclient's examples do, against HOST:PORT given as argument; prints what it got as JSON.

Runs in a process of its own: it imports nothing of this project. The server has the models `tiny` (FP32 [4]) and
`pictures` (UINT8 [1, 2, 2]), and lets clients control them.
"""

import asyncio
import io
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from PIL import Image

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
PIXELS = np.random.default_rng(0).integers(0, 4, (3, 1, 2, 2), np.uint8)


def request(rows: np.ndarray, datatype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput("input", list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows)
    return tensor


def encoded_pictures() -> np.ndarray:
    """BYTES [3, 1], a PNG each, as ensemble_image_client sends them."""
    pictures = np.empty((3, 1), dtype=object)
    for i, pixels in enumerate(PIXELS):
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, "PNG")
        pictures[i, 0] = file.getvalue()
    return pictures


def probs(result: triton.InferResult) -> list[list[float]]:
    return result.as_numpy("probs").tolist()


def error_of(call) -> list[str]:
    try:
        call()
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("no error")


def health_and_metadata(client: triton.InferenceServerClient) -> dict:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("tiny"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("tiny", as_json=True),
        "config": client.get_model_config("tiny", as_json=True)["config"],
        "unknown": error_of(lambda: client.get_model_metadata("wrong_model_name")),
    }


def inference(client: triton.InferenceServerClient) -> dict:
    found: dict = {}
    result = client.infer("tiny", [request(ROWS)], request_id="r1", headers={"test": "1"})
    found["id"], found["raw"] = result.get_response().id, probs(result)
    outputs = [triton.InferRequestedOutput(name) for name in ("member_probs", "entropy")]
    result = client.infer("tiny", [request(ROWS)], outputs=outputs, parameters={"policy": "members", "members": "2,0"})
    found["member_probs"] = result.as_numpy("member_probs").tolist()
    found["entropy"] = result.as_numpy("entropy").tolist()
    found["outputs"] = [output.name for output in result.get_response().outputs]
    for algorithm in ("gzip", "deflate"):
        found[algorithm] = probs(client.infer("tiny", [request(ROWS)], compression_algorithm=algorithm))
    result = client.infer("tiny", [request(ROWS)], priority=1, timeout=30_000_000, client_timeout=30.0)
    found["priority and timeout"] = probs(result)
    found["sequence"] = probs(client.infer("tiny", [request(ROWS)], sequence_id=7, sequence_start=True))

    outputs = [triton.InferRequestedOutput("probs", class_count=2)]
    classes = client.infer("tiny", [request(ROWS)], outputs=outputs).as_numpy("probs")
    found["classes"] = [[cell.decode() for cell in row] for row in classes]

    tensor, outputs = request(ROWS), [triton.InferRequestedOutput("probs")]
    found["objects used again"] = [probs(client.infer("tiny", [tensor], outputs=outputs)) for _ in range(2)]
    found["unknown infer"] = error_of(lambda: client.infer("other", [request(ROWS)]))
    return found


def contents_and_strings(client: triton.InferenceServerClient) -> dict:
    """Typed contents, for which the examples fill the message by hand; bytes."""
    stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(client._channel)
    typed = triton.service_pb2.ModelInferRequest(model_name="tiny")
    typed.inputs.add(name="input", datatype="FP32", shape=ROWS.shape).contents.fp32_contents.extend(ROWS.ravel())
    integers = triton.service_pb2.ModelInferRequest(model_name="pictures")
    tensor = integers.inputs.add(name="input", datatype="UINT8", shape=PIXELS.shape)
    tensor.contents.uint_contents.extend(PIXELS.ravel().tolist())
    strings = triton.service_pb2.ModelInferRequest(model_name="pictures")
    tensor = strings.inputs.add(name="input", datatype="BYTES", shape=[3, 1])
    tensor.contents.bytes_contents.extend(encoded_pictures().ravel())
    return {
        "typed": probs(triton.InferResult(stub.ModelInfer(typed))),
        "typed integers": probs(triton.InferResult(stub.ModelInfer(integers))),
        "typed strings": probs(triton.InferResult(stub.ModelInfer(strings))),
        "raw integers": probs(client.infer("pictures", [request(PIXELS, "UINT8")])),
        "raw strings": probs(client.infer("pictures", [request(encoded_pictures(), "BYTES")])),
    }


def callbacks_and_stream(client: triton.InferenceServerClient) -> dict:
    """async_infer and a bidirectional stream, both by callback; one request of the stream is wrong."""
    answers: queue.Queue = queue.Queue()

    def done(result: triton.InferResult, error: triton.InferenceServerException) -> None:
        answers.put((result, error))

    client.async_infer("tiny", [request(ROWS)], done)
    called_back = probs(answers.get(timeout=30)[0])
    client.start_stream(done)
    for i in range(10):
        client.async_stream_infer("tiny" if i != 4 else "other", [request(ROWS[i % 5 :][:1])], request_id=str(i))
    streamed = [answers.get(timeout=30) for _ in range(10)]
    client.stop_stream()
    return {
        "callback": called_back,
        "stream": [result.get_response().id if error is None else error.message() for result, error in streamed],
        "stream probs": [probs(result)[0] for result, error in streamed if error is None],
    }


def statistics_and_control(client: triton.InferenceServerClient) -> dict:
    def states() -> dict:
        index = client.get_model_repository_index(as_json=True)["models"]
        return {model["name"]: model["state"] for model in index}

    found: dict = {"statistics": client.get_inference_statistics("tiny", as_json=True)["model_stats"]}
    found["every model"] = len(client.get_inference_statistics(as_json=True)["model_stats"])
    found["states"] = [states()]
    client.unload_model("pictures")
    found["unloaded"] = error_of(lambda: client.infer("pictures", [request(PIXELS, "UINT8")]))[0]
    found["states"].append(states())
    client.load_model("pictures")
    found["states"].append(states())
    found["loaded"] = probs(client.infer("pictures", [request(PIXELS, "UINT8")]))
    found["unknown load"] = error_of(lambda: client.load_model("wrong_model_name"))
    return found


async def asynchronous(target: str) -> dict:
    async with triton_aio.InferenceServerClient(target) as client:
        calls = [client.infer("tiny", [request(ROWS[i : i + 1])]) for i in range(5)]
        gathered = [probs(result)[0] for result in await asyncio.gather(*calls)]

        async def requests():
            for i in range(5):
                yield {"model_name": "tiny", "inputs": [request(ROWS[i : i + 1])], "request_id": str(i)}

        streamed = [probs(result)[0] async for result, error in client.stream_infer(requests()) if error is None]
        ready = await client.is_model_ready("tiny")
        return {"asyncio": gathered, "asyncio stream": streamed, "asyncio ready": ready}


def main() -> None:
    target = sys.argv[1]
    keepalive = triton.KeepAliveOptions(keepalive_time_ms=60_000, keepalive_timeout_ms=20_000)
    with triton.InferenceServerClient(target, keepalive_options=keepalive) as client:
        found = health_and_metadata(client) | inference(client) | contents_and_strings(client)
        found |= callbacks_and_stream(client) | statistics_and_control(client)
    with triton.InferenceServerClient(target, channel_args=[("grpc.primary_user_agent", "test")]) as client:
        found["channel arguments"] = client.is_server_live()
    found |= asyncio.run(asynchronous(target))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
