"""From a prediction to the wire. Always raw contents: some clients read nothing else."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from protos.graph import DATATYPES
from protos.open_inference_grpc_pb2 import ModelInferRequest, ModelInferResponse
from serving.bytes_tensor import pack
from serving.conformal import prediction_set
from serving.ensemble import Ensemble
from serving.outputs import OUTPUTS
from serving.prediction import Prediction
from serving.request import Request


def build(
    message: ModelInferRequest, request: Request, prediction: Prediction, ensemble: Ensemble
) -> ModelInferResponse:
    """Parameters say the policy and the most members that answered a row; never which one a draw chose."""
    response = ModelInferResponse(model_name=ensemble.name, model_version=ensemble.version, id=message.id)
    response.parameters["policy"].string_param = request.choice.policy
    if not ensemble.disclosure.labels_only:
        response.parameters["members_run"].int64_param = int(prediction.members_run_B.max())
    for name in request.outputs:
        tensor = _tensor(name, request, prediction, ensemble)
        datatype = OUTPUTS[name].datatype
        if datatype != "BYTES":
            tensor = np.ascontiguousarray(tensor, DATATYPES[datatype].newbyteorder("<"))
        if count := request.classification.get(name):
            response.outputs.add(name=name, datatype="BYTES", shape=[len(tensor), count])
            response.raw_output_contents.append(pack(_likeliest(tensor, count, ensemble.class_labels)))
            continue
        response.outputs.add(name=name, datatype=datatype, shape=tensor.shape)
        response.raw_output_contents.append(pack(tensor) if datatype == "BYTES" else tensor.tobytes())
    return response


def _tensor(name: str, request: Request, prediction: Prediction, ensemble: Ensemble) -> NDArray[np.generic]:
    """Rows first, no more precise than the server tells."""
    told = ensemble.disclosure
    match name:
        case "probs":
            return told.probs(prediction.probs_BC)
        case "entropy":
            return told.reals(prediction.entropy_B)
        case "mutual_information":
            return told.reals(prediction.mutual_information_B)
        case "energy":
            assert prediction.energy_B is not None  # the choice asked for it
            return told.reals(prediction.energy_B)
        case "member_probs":
            return told.probs(prediction.member_probs_BMC)
        case "members_run":
            return prediction.members_run_B
        case "prediction_set":
            # Of what is told: sets of many levels would otherwise tell what rounding hides.
            return prediction_set(told.probs(prediction.probs_BC), request.set_threshold + told.rounding)
        case "label":
            labels = [ensemble.class_labels[index].encode() for index in prediction.probs_BC.argmax(axis=1)]
            return np.array(labels, dtype=object)
    raise AssertionError(name)


def _likeliest(values_BC: NDArray[np.generic], count: int, labels: Sequence[str]) -> Iterator[bytes]:
    """For each row `value:index:label` of its `count` greatest values, as Triton writes them."""
    for values in values_BC:
        for index in np.argsort(-values, kind="stable")[:count].tolist():
            yield f"{values[index]:f}:{index}:{labels[index]}".encode()
