"""A real server process, asked over gRPC: answers, health, metadata, metrics, policies, and its end at SIGTERM."""

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from protos import open_inference_grpc_pb2 as oip
from protos import signature
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.client import Client
from tests import tiny_ensemble
from tests.server_process import ROOT, ServerProcess

ROWS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)


@pytest.fixture
def client(tiny_server: ServerProcess):  # type: ignore[no-untyped-def]
    with Client(tiny_server.grpc, "tiny") as client:
        yield client


class Scraped:
    """What /metrics says: [name] of model tiny, or [name, labels] of model tiny, or of the server if there are none."""

    def __init__(self, server: ServerProcess) -> None:
        with urllib.request.urlopen(f"http://{server.metrics}/metrics") as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        self._values = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def __getitem__(self, key: str | tuple[str, dict[str, str]]) -> float:
        name, labels = (key, None) if isinstance(key, str) else key
        of_model = {"model": "tiny", "version": "1"} if labels != {} else {}
        return self._values[name, frozenset((of_model | (labels or {})).items())]


def test_mean_equals_the_definition(client: Client) -> None:
    answer = client.predict(ROWS, member_probs=True)
    np.testing.assert_allclose(answer.probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)
    members = tiny_ensemble.member_probs(ROWS)
    assert answer.member_probs is not None
    np.testing.assert_allclose(answer.member_probs, members.swapaxes(0, 1), atol=1e-6)
    mean = members.mean(0)
    information = -(mean * np.log(mean)).sum(-1) + (members * np.log(members)).sum(-1).mean(0)
    np.testing.assert_allclose(answer.mutual_information, information, atol=1e-6)
    np.testing.assert_allclose(answer.entropy, -(answer.probs * np.log(answer.probs)).sum(-1), atol=1e-6)
    assert (answer.policy, answer.members_run) == ("mean", 4)


@pytest.mark.parametrize("chosen", [[0], [3, 0], [1, 2, 3], [0, 1, 2, 3]])
def test_members_equals_the_definition_in_the_clients_order(client: Client, chosen: list[int]) -> None:
    answer = client.predict(ROWS, members=chosen, member_probs=True)
    np.testing.assert_allclose(answer.probs, tiny_ensemble.pooled_probs(ROWS, chosen), atol=1e-6)
    assert answer.member_probs is not None
    expected = tiny_ensemble.member_probs(ROWS)[chosen].swapaxes(0, 1)
    np.testing.assert_allclose(answer.member_probs, expected, atol=1e-6)
    assert (answer.policy, answer.members_run) == ("members", len(chosen))


def test_members_may_be_named_by_id(tiny_server: ServerProcess) -> None:
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        request = oip.ModelInferRequest(model_name="tiny", id="a1", raw_input_contents=[ROWS.tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=ROWS.shape)
        request.outputs.add(name="probs")
        request.parameters["members"].string_param = "curve-0.25, 1"
        response = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert [output.name for output in response.outputs] == ["probs"]
    assert (response.id, response.model_version) == ("a1", "1")
    probs = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(7, 3)
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS, [3, 1]), atol=1e-6)


def test_concurrent_requests_of_every_policy_get_their_own_answers(tiny_server: ServerProcess) -> None:
    draw = np.random.default_rng(1)
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        calls = []
        for i in range(200):
            rows = draw.normal(size=(1 + i % 3, 4)).astype("<f4")
            chosen = [None, [2], [3, 1], "random"][i % 4]
            request = oip.ModelInferRequest(model_name="tiny", id=str(i), raw_input_contents=[rows.tobytes()])
            request.inputs.add(name="input", datatype="FP32", shape=rows.shape)
            if chosen == "random":
                request.parameters["policy"].string_param = "random"
            elif chosen is not None:
                request.parameters["members"].string_param = ",".join(map(str, chosen))
            calls.append((i, rows, chosen, stub.ModelInfer.future(request, timeout=30)))
        for i, rows, chosen, call in calls:
            response = call.result()
            assert response.id == str(i)
            probs = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(len(rows), 3)
            if chosen == "random":
                distance = np.abs(tiny_ensemble.member_probs(rows) - probs).max(-1)
                assert (distance.min(0) < 1e-6).all()
            else:
                np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(rows, chosen), atol=1e-6)


def test_metadata_and_readiness(tiny_server: ServerProcess, client: Client) -> None:
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(oip.ServerLiveRequest()).live
        assert stub.ServerReady(oip.ServerReadyRequest()).ready
        assert stub.ModelReady(oip.ModelReadyRequest(name="tiny", version="1")).ready
        assert stub.ServerMetadata(oip.ServerMetadataRequest()).name == "thalweg"
        metadata = stub.ModelMetadata(oip.ModelMetadataRequest(name="tiny"))
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService", "tiny"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    assert list(metadata.versions) == ["1"]
    tensors = [(t.name, t.datatype, list(t.shape)) for t in (*metadata.inputs, *metadata.outputs)]
    assert tensors == [
        ("input", "FP32", [-1, 4]),
        ("probs", "FP32", [-1, 3]),
        ("entropy", "FP32", [-1]),
        ("mutual_information", "FP32", [-1]),
        ("member_probs", "FP32", [-1, -1, 3]),
        ("energy", "FP32", [-1]),
        ("members_run", "INT32", [-1]),
        ("prediction_set", "BOOL", [-1, 3]),
        ("label", "BYTES", [-1]),
    ]
    assert json.loads(metadata.properties["class_labels"]) == ["a", "b", "c"]
    assert (client.model().members, client.model().max_batch_rows) == (4, 256)


def test_metrics_count_what_happened(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory) as server, Client(server.grpc, "tiny") as client:
        before = Scraped(server)
        client.predict(ROWS)
        client.predict(ROWS[:2], members=[0, 2])
        with pytest.raises(grpc.RpcError):
            client.predict(np.full((1, 4), np.nan, np.float32))
        with pytest.raises(grpc.RpcError):
            client.predict(np.full((1, 4), np.finfo(np.float32).max, np.float32), policy="random")
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff", timeout=30)
        after = Scraped(server)  # at once: what a client has seen is counted
    for policy, code, count in (
        ("mean", "OK", 1),
        ("members", "OK", 1),
        ("random", "INVALID_ARGUMENT", 1),  # the network overflowed
        ("", "INVALID_ARGUMENT", 1),  # refused before its policy was read
        ("mean", "INVALID_ARGUMENT", 0),
    ):
        labels = {"policy": policy, "code": code}
        assert before["ensemble_requests_total", labels] == 0
        assert after["ensemble_requests_total", labels] == count
    undecodable = {"model": "", "version": "", "policy": "", "code": "INVALID_ARGUMENT"}
    assert after["ensemble_requests_total", undecodable] == 1
    assert after["ensemble_rows_total"] == 9 + 1
    assert after["ensemble_members_run_total"] == 7 * 4 + 2 * 2 + 1
    for name in ("queue", "execute", "combine"):
        assert after[f"ensemble_{name}_seconds_count"] == 3
    assert after["ensemble_request_seconds_count"] == 2  # of those that were answered
    assert after["ensemble_batch_rows_sum"] == 10
    assert after["ensemble_queue_rows"] == 0
    assert after["ensemble_queue_limit_rows"] == 1024
    assert after["ensemble_entropy_nats_count"] == 9
    assert after["ensemble_disagreement_ratio_count"] == 9
    tops = np.concatenate([tiny_ensemble.pooled_probs(ROWS), tiny_ensemble.pooled_probs(ROWS[:2], [0, 2])]).argmax(1)
    for c, label in enumerate("abc"):
        assert after["ensemble_predicted_rows_total", {"class": label}] == (tops == c).sum()
    assert after["ensemble_requests_in_flight", {}] == 0
    assert after["ensemble_ready", {}] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_zero(tiny_directory: Path, number: int) -> None:
    server = ServerProcess(tiny_directory)
    server.process.send_signal(number)
    _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode == 0, errors
    assert "Traceback" not in errors


def test_while_draining_it_is_not_ready_and_still_answers(tiny_directory: Path) -> None:
    # Long enough that the test ends it, not the clock.
    with ServerProcess(tiny_directory, "--drain-seconds", "600") as server:
        with grpc.insecure_channel(server.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service="tiny"))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            server.process.terminate()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            stub = GRPCInferenceServiceStub(channel)
            assert not stub.ServerReady(oip.ServerReadyRequest()).ready
            assert stub.ServerLive(oip.ServerLiveRequest()).live
            with Client(server.grpc, "tiny") as client:
                np.testing.assert_allclose(client.predict(ROWS).probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)
            assert Scraped(server)["ensemble_ready", {}] == 0
            watch.cancel()
        server.process.kill()
        server.process.communicate(timeout=60)


def test_at_sigterm_every_request_that_was_sent_is_answered_or_told_to_go_elsewhere(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory, "--max-queue-rows", "4096") as server:
        channels = [grpc.insecure_channel(server.grpc, [("c", i)]) for i in range(8)]
        stubs = [GRPCInferenceServiceStub(channel) for channel in channels]
        for stub in stubs:
            stub.ServerLive(oip.ServerLiveRequest(), timeout=30)
        request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS.astype("<f4").tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=ROWS.shape)
        calls = [stub.ModelInfer.future(request, timeout=30) for stub in stubs for _ in range(40)]
        server.process.terminate()
        codes = [call.code() for call in calls]
        _, errors = server.process.communicate(timeout=60)
        for channel in channels:
            channel.close()
    assert set(codes) == {grpc.StatusCode.OK}
    assert server.process.returncode == 0
    assert "Traceback" not in errors


def test_health_watchers_and_half_open_calls_do_not_hold_up_the_end(tiny_directory: Path) -> None:
    # A grace that would outlast the test.
    with (
        ServerProcess(tiny_directory, "--grace-seconds", "3000") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="tiny"))
        next(watch)
        never_sent = threading.Event()

        def requests() -> Iterator[bytes]:
            never_sent.wait(60)
            yield b""

        half_open = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(requests())
        code, errors = server.stop()
        never_sent.set()
        half_open.cancel()
    assert code == 0, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(tiny_directory: Path, number: signal.Signals) -> None:
    server = ServerProcess(tiny_directory, "--drain-seconds", "600")
    server.process.terminate()
    assert server.process.stderr is not None
    for line in server.process.stderr:
        if "draining" in line:
            break
    server.process.send_signal(number)
    server.process.communicate(timeout=60)
    assert server.process.returncode == 128 + number


def test_a_signal_when_everything_is_answered_does_not_spoil_the_exit_code(tiny_directory: Path) -> None:
    server = ServerProcess(tiny_directory)
    server.process.terminate()
    assert server.process.stderr is not None
    for line in server.process.stderr:
        if "stopped" in line:
            server.process.terminate()
            break
    server.process.communicate(timeout=60)
    assert server.process.returncode == 0


BLOCKED = """
import asyncio, sys, threading
from pathlib import Path
from serving import server
from serving.repository import loader, reload
from serving.settings import Settings

def block(*arguments, **options):
    print("blocked", flush=True)
    threading.Event().wait()

setattr(*{"read": (reload.Reloader, "read"), "load": (loader.Loader, "_load")}[sys.argv[1]], block)
asyncio.run(server.serve(Settings((Path(sys.argv[2]),), grpc_port=0, metrics_port=0)))
"""


@pytest.mark.parametrize("stage", ["read", "load"])
def test_a_signal_ends_a_process_whose_model_still_loads(tiny_directory: Path, stage: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, stage, str(tiny_directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "blocked\n"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_repository_answers_by_name_and_version(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "repo/tiny/9", members=3, version="9")
    tiny_ensemble.write(tmp_path / "repo/tiny/10", members=2, version="10")
    tiny_ensemble.write(tmp_path / "repo/other", name="other")
    tiny_ensemble.write(tmp_path / "alone", members=1, name="alone")
    with (
        ServerProcess(tmp_path / "repo", str(tmp_path / "alone")) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        for name, version, answered_by, members in (
            ("tiny", "", "10", 2),
            ("tiny", "10", "10", 2),
            ("tiny", "9", "9", 3),
            ("other", "", "1", 4),
            ("alone", "", "1", 1),
        ):
            request = oip.ModelInferRequest(
                model_name=name, model_version=version, raw_input_contents=[ROWS.astype("<f4").tobytes()]
            )
            request.inputs.add(name="input", datatype="FP32", shape=ROWS.shape)
            response = stub.ModelInfer(request, timeout=30)
            assert (response.model_name, response.model_version) == (name, answered_by)
            probs = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(7, 3)
            np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS, members=members), atol=1e-6)
        assert stub.ModelMetadata(oip.ModelMetadataRequest(name="tiny"), timeout=30).versions == ["9", "10"]
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("tiny", "other", "alone"):
            status = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def start_and_fail(*arguments: str) -> str:
    command = [sys.executable, "-m", "serving", *arguments, "--grpc-port", "0", "--metrics-port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("thalweg-serve: error: ")]
    assert "Traceback" not in done.stderr
    return line


def test_a_bad_directory_ends_the_process_before_it_is_ready(tmp_path: Path) -> None:
    assert "no-directory" in start_and_fail(str(tmp_path / "nothing"))
    tiny_ensemble.write(tmp_path / "tiny")
    (tmp_path / "tiny/weights/w0.safetensors").write_bytes(b"")
    assert "wrong-size: 'weights/w0.safetensors' has 0 bytes" in start_and_fail(str(tmp_path / "tiny"))


def test_a_check_names_what_would_be_served_or_the_first_that_would_not(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "repo/tiny/9", version="9")
    tiny_ensemble.write(tmp_path / "repo/tiny/10", version="10")
    command = [sys.executable, "-m", "serving", str(tmp_path / "repo"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert [line.rpartition(" path=")[0] for line in done.stdout.splitlines()] == [
        "valid tiny version=10",
        "valid tiny version=9",
    ]
    weights = tmp_path / "repo/tiny/9/weights/w0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "thalweg-serve: error: wrong-hash: 'weights/w0.safetensors'" in done.stderr


def test_two_folders_of_the_same_version_are_refused(tmp_path: Path) -> None:
    for place in ("a", "b"):
        tiny_ensemble.write(tmp_path / place)
    line = start_and_fail(str(tmp_path / "a"), str(tmp_path / "b"))
    assert f"'{tmp_path}/a' and '{tmp_path}/b' are version '1' of 'tiny'; expected one of them" in line


def test_what_the_required_key_has_not_signed_is_refused(tiny_directory: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_bytes(signature.generate()[1])
    assert "unsigned: " in start_and_fail(str(tiny_directory), "--require-signature", str(key))
    key.write_text("no key")
    line = start_and_fail(str(tiny_directory), "--require-signature", str(key))
    assert f"--require-signature {key}: there is no public key in PEM" in line


def test_an_ensemble_that_predicts_the_next_token_is_refused_and_pointed_elsewhere(tmp_path: Path) -> None:
    tiny_ensemble.write_next_token(tmp_path / "bigram")
    line = start_and_fail(str(tmp_path / "bigram"))
    assert "'bigram' predicts the next token, which this server does not answer" in line
    assert "`thalweg-train export --standalone`" in line


def test_cuda_without_a_gpu_fails_at_start_and_says_what_is_missing(tiny_directory: Path) -> None:
    from serving.networks.device import _missing_for_cuda

    if _missing_for_cuda() is None:
        pytest.skip("there is a GPU")
    assert "--device cuda: " in start_and_fail(str(tiny_directory), "--device", "cuda")


def test_a_port_in_use_is_refused(tiny_directory: Path, tiny_server: ServerProcess) -> None:
    for flag, address in (("--grpc-port", tiny_server.grpc), ("--metrics-port", tiny_server.metrics)):
        other = "--metrics-port" if flag == "--grpc-port" else "--grpc-port"
        command = [sys.executable, "-m", "serving", str(tiny_directory), flag, address.split(":")[1], other, "0"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert f"thalweg-serve: error: cannot listen on {address}" in done.stderr


@pytest.mark.gpu
def test_on_a_gpu_answers_equal_the_definition(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory, "--device", "cuda") as server, Client(server.grpc, "tiny") as client:
        np.testing.assert_allclose(client.predict(ROWS).probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-4)
