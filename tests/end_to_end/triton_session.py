"""Everything that tritonclient's users do, against HOST:PORT given as argument; prints what it got as JSON.

Runs in a process of its own: it imports nothing of this project.
"""

import asyncio
import json
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio


def request(rows: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return tensor


def main() -> None:
    target, model = sys.argv[1:]
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found: dict[str, object] = {}

    client = triton.InferenceServerClient(target)
    found["live"], found["ready"] = client.is_server_live(), client.is_server_ready()
    found["model_ready"] = client.is_model_ready(model)
    found["server"] = client.get_server_metadata(as_json=True)
    found["metadata"] = client.get_model_metadata(model, as_json=True)

    result = client.infer(model, [request(rows)], request_id="r1")
    found["id"] = result.get_response().id
    found["raw"] = result.as_numpy("probs").tolist()
    outputs = [triton.InferRequestedOutput(name) for name in ("member_probs", "entropy")]
    result = client.infer(model, [request(rows)], outputs=outputs, parameters={"policy": "members", "members": "2,0"})
    found["member_probs"] = result.as_numpy("member_probs").tolist()
    found["entropy"] = result.as_numpy("entropy").tolist()
    found["outputs"] = [output.name for output in result.get_response().outputs]

    # Typed contents: tritonclient itself always sends raw ones, so its message is filled in by hand.
    typed = triton.service_pb2.ModelInferRequest(model_name=model)
    tensor = typed.inputs.add(name="input", datatype="FP32", shape=rows.shape)
    tensor.contents.fp32_contents.extend(rows.ravel().tolist())
    response = triton.service_pb2_grpc.GRPCInferenceServiceStub(client._channel).ModelInfer(typed)
    found["typed"] = triton.InferResult(response).as_numpy("probs").tolist()

    try:
        client.infer("other", [request(rows)])
    except triton.InferenceServerException as error:
        found["error"] = [error.status(), error.message()]
    client.close()

    async def asynchronous() -> list[list[list[float]]]:
        async with triton_aio.InferenceServerClient(target) as client:
            calls = [client.infer(model, [request(rows[i : i + 1])]) for i in range(5)]
            return [result.as_numpy("probs").tolist() for result in await asyncio.gather(*calls)]

    found["asyncio"] = asyncio.run(asynchronous())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
