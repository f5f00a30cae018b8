"""From a prediction to the wire. Always raw contents: some clients read nothing else."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from protos.open_inference_grpc_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from serving.bytes_tensor import pack
from serving.ensemble import Ensemble
from serving.prediction import Prediction
from serving.request import Request


def build(
    message: ModelInferRequest, request: Request, prediction: Prediction, ensemble: Ensemble
) -> ModelInferResponse:
    """Parameters say the policy and how many members answered each row; never which one a draw chose."""
    tensors = {
        "probs": prediction.probs_BC,
        "entropy": prediction.entropy_B,
        "mutual_information": prediction.mutual_information_B,
        "member_probs": prediction.member_probs_BMC,
    }
    response = ModelInferResponse(
        model_name=ensemble.name,
        model_version=ensemble.version,
        id=message.id,
        parameters={
            "policy": InferParameter(string_param=request.choice.policy),
            "members_run": InferParameter(int64_param=request.choice.members_run(len(ensemble.member_ids))),
        },
    )
    for name in request.outputs:
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        if count := request.classification.get(name):
            response.outputs.add(name=name, datatype="BYTES", shape=[len(tensor), count])
            response.raw_output_contents.append(pack(_likeliest(tensor, count, ensemble.class_labels)))
            continue
        response.outputs.add(name=name, datatype="FP32", shape=tensor.shape)
        response.raw_output_contents.append(tensor.tobytes())
    return response


def _likeliest(values_BC: NDArray[np.float32], count: int, labels: Sequence[str]) -> Iterator[bytes]:
    """For each row `value:index:label` of its `count` greatest values, as Triton writes them."""
    for values in values_BC:
        for index in np.argsort(-values, kind="stable")[:count].tolist():
            yield f"{values[index]:f}:{index}:{labels[index]}".encode()
