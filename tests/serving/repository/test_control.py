"""Model control over gRPC, against a real process: off by default, and as tritonclient and KServe's clients call it."""

import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests import tiny_ensemble
from tests.server_process import ServerProcess

# Triton's public example, simple_grpc_model_control.py, with our model's name.
EXAMPLE = """
import sys
import tritonclient.grpc as triton

client, name = triton.InferenceServerClient(sys.argv[1]), "tiny"
client.load_model(name)
assert client.is_model_ready(name)
index = client.get_model_repository_index()
assert [(model.name, model.version, model.state) for model in index.models] == [("tiny", "1", "READY")], index
client.unload_model(name)
assert not client.is_model_ready(name)
assert client.get_model_repository_index().models[0].reason == "unloaded"
try:
    client.load_model("wrong_model_name")
except triton.InferenceServerException as error:
    assert "failed to load" in error.message()
else:
    raise AssertionError("a wrong name was loaded")
client.load_model(name)
assert client.is_model_ready(name)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    tiny_ensemble.write(repository / "tiny/1")
    with ServerProcess(repository, "--allow-control") as server:
        yield server


def test_tritons_example_of_model_control_passes(server: ServerProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE, server.grpc], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def refusal(server: ServerProcess, method: str, request: object) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        getattr(GRPCInferenceServiceStub(channel), method)(request, timeout=30)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("method", ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"])
def test_control_is_off_unless_allowed(tiny_server: ServerProcess, method: str) -> None:
    code, details = refusal(tiny_server, method, getattr(oip, f"{method}Request")())
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "--allow-control" in details


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_what_cannot_be_meant_is_refused(server: ServerProcess, method: str) -> None:
    request_class = getattr(oip, f"{method}Request")
    # KServe's form has the model's name in field 1.
    code, details = refusal(server, method, request_class(repository_name="tiny"))
    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the model's name, field 2, is empty; this server speaks Triton's form of the call",
    )
    code, details = refusal(server, method, request_class(repository_name="other", model_name="tiny"))
    assert (code, "unknown repository 'other'" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    request = request_class(model_name="tiny")
    request.parameters["file:1/model.onnx"].bytes_param = b"anything"
    code, details = refusal(server, method, request)
    assert (code, "unknown parameter 'file:1/model.onnx'" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, details = refusal(server, method, request_class(model_name="../tiny"))
    assert (code, "'../tiny'" in details) == (grpc.StatusCode.NOT_FOUND, True)


def test_the_index_can_be_of_ready_models_only(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="tiny"), timeout=30)
        assert len(stub.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=30).models) == 1
        assert not stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), timeout=30).models
        stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="tiny"), timeout=30)
        assert len(stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), timeout=30).models) == 1
