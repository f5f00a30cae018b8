"""What a good engineer writes without a framework: grpc.aio over one fused graph, on generated messages.

https://grpc.io/docs/languages/python/basics/ and the example `async_greeter_server.py`, with ONNX
Runtime in an executor.
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.peers import Body, oip, options, sessions

PACKAGES = ("grpcio==1.85.3", "protobuf==6.33.6", "uvloop==0.23.0", "numpy", "onnxruntime")
SETUPS = ("natural", "tuned")
PROTOCOL = "oip-grpc"
# Tried for `tuned`, in images/s at 8 and 32 in parallel (2 cores, 2026-11-25; `natural` 149, 179): one thread and two
# callers, no batches 242, 226; with uvloop 229, 248; batches of up to 4 and uvloop 269, 279; up to 8 222, 294; one
# caller with two threads, up to 16 266, 256.
LARGEST_BATCH = 4  # requests


def request(rows: NDArray[np.uint8], setup: str) -> Body:
    return oip.request(rows)


def probabilities(response: bytes, setup: str) -> NDArray[np.float32]:
    return oip.probabilities(response)


async def serve(chosen: argparse.Namespace) -> None:
    import grpc

    from protos import open_inference_grpc_pb2 as pb
    from protos import open_inference_grpc_pb2_grpc as pb_grpc

    ensemble = sessions.fused(chosen.models, threads=1 if chosen.setup == "tuned" else 0)
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(chosen.threads)
    queue: asyncio.Queue[tuple[NDArray[np.uint8], asyncio.Future[NDArray[np.float32]]]] = asyncio.Queue()

    async def work() -> None:
        """The next batch is whatever came while the last one ran."""
        while True:
            waiting = [await queue.get()]
            while len(waiting) < LARGEST_BATCH and not queue.empty():
                waiting.append(queue.get_nowait())
            ends = np.cumsum([len(rows) for rows, _ in waiting])
            batch = np.concatenate([rows for rows, _ in waiting])
            probs = await loop.run_in_executor(executor, ensemble, batch)
            for (_, future), part in zip(waiting, np.split(probs, ends[:-1]), strict=True):
                if not future.cancelled():
                    future.set_result(part)

    class Servicer(pb_grpc.GRPCInferenceServiceServicer):
        async def ModelInfer(self, message: Any, context: Any) -> pb.ModelInferResponse:  # noqa: N802
            rows = np.frombuffer(message.raw_input_contents[0], np.uint8).reshape(message.inputs[0].shape)
            if chosen.setup == "natural":
                probs = await loop.run_in_executor(executor, ensemble, rows)
            else:
                future = loop.create_future()
                queue.put_nowait((rows, future))
                probs = await future
            response = pb.ModelInferResponse(model_name=message.model_name, id=message.id)
            response.outputs.add(name="probs", datatype="FP32", shape=probs.shape)
            response.raw_output_contents.append(probs.tobytes())
            return response

    workers = [asyncio.create_task(work()) for _ in range(chosen.threads)]
    server = grpc.aio.server()
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"127.0.0.1:{chosen.port}")
    await server.start()
    await asyncio.gather(server.wait_for_termination(), *workers)


def main() -> None:
    chosen = options(SETUPS)
    if chosen.setup == "natural":
        asyncio.run(serve(chosen))
    else:
        import uvloop

        uvloop.run(serve(chosen))


if __name__ == "__main__":
    main()
