"""Output parameter `classification`: the likeliest classes as `value:index:label`, as Triton writes them."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.bytes_tensor import unpack
from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype("<f4")


@pytest.fixture(scope="module")
def stub(tiny_server: ServerProcess) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def request(**counts: int) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS.tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=ROWS.shape)
    for name, count in counts.items():
        message.outputs.add(name=name).parameters["classification"].int64_param = count
    return message


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_likeliest_classes_come_first(stub: GRPCInferenceServiceStub, count: int) -> None:
    response = stub.ModelInfer(request(probs=count), timeout=30)
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [5, count])
    cells = np.array(unpack(response.raw_output_contents[0], 5 * count)).reshape(5, count)
    for probs, row in zip(tiny_ensemble.pooled_probs(ROWS), cells, strict=True):
        for index, cell in zip(np.argsort(-probs)[:count], row, strict=True):
            value, number, label = cell.decode().split(":")
            assert (int(number), label) == (index, "abc"[index])
            assert float(value) == pytest.approx(probs[index], abs=2e-6)


def test_zero_is_the_tensor_itself(stub: GRPCInferenceServiceStub) -> None:
    response = stub.ModelInfer(request(probs=0), timeout=30)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("FP32", [5, 3])


@pytest.mark.parametrize(
    ("message", "details"),
    [
        (request(probs=4), "parameter 'classification' is 4; the model has 3 classes"),
        (request(probs=-1), "parameter 'classification' is -1; expected 0 to 3 classes"),
        (request(entropy=1), "output 'entropy' came with parameter 'classification'; expected it on probs"),
    ],
)
def test_other_counts_and_outputs_are_refused(
    stub: GRPCInferenceServiceStub, message: oip.ModelInferRequest, details: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == details
