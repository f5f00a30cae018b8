"""How a server of the Open Inference Protocol is asked over gRPC: one tensor in, one out, both raw."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.peers import Body

PATH = "/inference.GRPCInferenceService/ModelInfer"

# The messages are imported when they are used: a peer's environment may have a protobuf that is too old for them.


def request(rows: NDArray[np.generic], outputs: Sequence[str] = ("probs",)) -> Body:
    """rows: uint8 or float32 [B, 3, 32, 32]. outputs: what is asked for; none: what the server gives."""
    from protos import open_inference_grpc_pb2 as oip

    message = oip.ModelInferRequest(model_name="ensemble", raw_input_contents=[rows.tobytes()])
    datatype = {"uint8": "UINT8", "float32": "FP32"}[rows.dtype.name]
    message.inputs.add(name="input", datatype=datatype, shape=rows.shape)
    for name in outputs:
        message.outputs.add(name=name)
    return Body(PATH, "application/grpc", message.SerializeToString())


def probabilities(response: bytes) -> NDArray[np.float32]:
    """[B, 10], from the first output."""
    from protos import open_inference_grpc_pb2 as oip

    message = oip.ModelInferResponse.FromString(response)
    tensor = message.outputs[0]
    raw = message.raw_output_contents
    flat = np.frombuffer(raw[0], "<f4") if raw else np.array(tensor.contents.fp32_contents, np.float32)
    return flat.reshape(tensor.shape)
