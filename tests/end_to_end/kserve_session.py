"""What KServe's clients do, over gRPC and HTTP, against two HOST:PORT given as arguments; prints what it got as JSON.

Runs in an environment of its own, with the package kserve and nothing of this project.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def raw(**more) -> InferRequest:
    tensor = InferInput("input", [5, 4], "FP32")
    tensor.set_data_from_numpy(ROWS)
    return InferRequest("tiny", [tensor], request_id="r1", **more)


def typed(**more) -> InferRequest:
    return InferRequest("tiny", [InferInput("input", [5, 4], "FP32", data=ROWS.ravel().tolist())], **more)


def outputs(response) -> dict:
    return {output.name: output.as_numpy().tolist() for output in response.outputs}


async def over_grpc(target: str) -> dict:
    async with InferenceGRPCClient(target, channel_args=[("grpc.max_receive_message_length", -1)]) as client:
        found = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready("tiny"),
        }
        response = await client.infer(raw(parameters={"policy": "members", "members": "2,0"}), timeout=30)
        found["members"], found["id"] = outputs(response)["probs"], response.id
        found["typed"] = outputs(await client.infer(typed()))["probs"]
        found["raw"] = outputs(await client.infer(raw(request_outputs=[RequestedOutput("probs")])))
        try:
            await client.infer(InferRequest("other", raw().inputs))
        except Exception as error:
            found["error"] = [error.code().name, error.details()]
        return found


async def over_http(target: str) -> dict:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    base = f"http://{target}"
    found = {
        "live": await client.is_server_live(base),
        "ready": await client.is_server_ready(base),
        "model ready": await client.is_model_ready(base, "tiny"),
    }
    found["typed"] = outputs(await client.infer(base, typed(), model_name="tiny"))["probs"]
    response = await client.infer(base, raw(parameters={"binary_data_output": True}), model_name="tiny")
    found["raw"], found["id"] = outputs(response)["probs"], response.id
    said = {"inputs": [{"name": "input", "shape": [5, 4], "datatype": "FP32", "data": ROWS.tolist()}]}
    found["dict"] = outputs(await client.infer(base, said, model_name="tiny"))["probs"]
    try:
        await client.infer(base, typed(), model_name="other")
    except Exception as error:
        found["error"] = str(error)
    await client.close()
    return found


async def main() -> None:
    print(json.dumps({"grpc": await over_grpc(sys.argv[1]), "http": await over_http(sys.argv[2])}))


if __name__ == "__main__":
    asyncio.run(main())
