"""What a model tells of itself: metadata, Triton's configuration and statistics, reflection."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype("<f4")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("repository")
    tiny_ensemble.write_repository(directory)
    with ServerProcess(directory) as server:
        yield server


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def test_the_configuration_says_what_the_metadata_says(stub: GRPCInferenceServiceStub) -> None:
    config = stub.ModelConfig(oip.ModelConfigRequest(name="tiny"), timeout=30).config
    metadata = stub.ModelMetadata(oip.ModelMetadataRequest(name="tiny"), timeout=30)
    assert (config.name, config.platform, config.max_batch_size) == (metadata.name, metadata.platform, 64)
    for described, tensors in ((config.input, metadata.inputs), (config.output, metadata.outputs)):
        names = [
            (tensor.name, f"TYPE_{tensor.datatype.replace('BYTES', 'STRING')}", list(tensor.shape[1:]))
            for tensor in tensors
        ]
        assert [(each.name, oip.DataType.Name(each.data_type), list(each.dims)) for each in described] == names
    assert {name: value.string_value for name, value in config.parameters.items()} == dict(metadata.properties)
    assert config.input[0].format == oip.ModelInput.FORMAT_NONE
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.priority_levels == 3
    assert not config.model_transaction_policy.decoupled


def test_a_network_of_pictures_says_so(stub: GRPCInferenceServiceStub) -> None:
    (tensor,) = stub.ModelConfig(oip.ModelConfigRequest(name="pictures"), timeout=30).config.input
    assert (tensor.format, tensor.data_type) == (oip.ModelInput.FORMAT_NCHW, oip.TYPE_UINT8)


@pytest.mark.parametrize("method", ["ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize(("name", "version"), [("other", ""), ("tiny", "7")])
def test_unknown_models_are_not_found(stub: GRPCInferenceServiceStub, method: str, name: str, version: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(getattr(oip, f"{method}Request")(name=name, version=version), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def infer(stub: GRPCInferenceServiceStub, rows: int, version: str = "") -> None:
    message = oip.ModelInferRequest(
        model_name="tiny", model_version=version, raw_input_contents=[ROWS[:rows].tobytes()]
    )
    message.inputs.add(name="input", datatype="FP32", shape=[rows, 4])
    stub.ModelInfer(message, timeout=30)


def test_statistics_count_what_happened(tmp_path: Path) -> None:
    for version in ("1", "2"):
        tiny_ensemble.write(tmp_path / "tiny" / version, version=version)
    with ServerProcess(tmp_path) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        before = stub.ModelStatistics(oip.ModelStatisticsRequest(), timeout=30).model_stats
        assert [(each.version, each.inference_count, each.last_inference) for each in before] == [
            ("1", 0, 0),
            ("2", 0, 0),
        ]
        for rows in (5, 2, 2):
            infer(stub, rows)
        infer(stub, 1, "1")
        with pytest.raises(grpc.RpcError):
            infer(stub, 0)
        (latest,) = stub.ModelStatistics(oip.ModelStatisticsRequest(name="tiny", version="2"), timeout=30).model_stats
        everything = stub.ModelStatistics(oip.ModelStatisticsRequest(name="tiny"), timeout=30).model_stats
    assert [each.inference_count for each in everything] == [1, 9]
    assert (latest.name, latest.inference_count, latest.execution_count) == ("tiny", 9, 3)
    assert latest.last_inference > 1_700_000_000_000
    stats = latest.inference_stats
    assert (stats.success.count, stats.fail.count) == (3, 1)
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [part.count for part in parts] == [3, 3, 3, 3]
    assert 0 < sum(part.ns for part in parts) <= stats.success.ns
    sizes = [(batch.batch_size, batch.compute_infer.count, batch.compute_output.count) for batch in latest.batch_stats]
    assert sizes == [(2, 2, 2), (5, 1, 1)]
    assert sum(batch.compute_infer.ns for batch in latest.batch_stats) == pytest.approx(stats.compute_infer.ns, abs=9)


def test_an_unknown_method_is_unimplemented(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/TraceSetting")(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_client_without_our_messages_learns_them_by_reflection(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
        assert set(service.methods_by_name) == set(
            oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
        )
        files = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest")]),
            timeout=30,
        )
        (data,) = next(files).file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(data).package == "inference"
