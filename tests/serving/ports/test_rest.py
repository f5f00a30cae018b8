"""The protocol over HTTP: the answers of gRPC in JSON and in binary, and what is refused, with plain HTTP requests."""

import gzip
import http.client
import json
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bytes_tensor import pack
from tests import tiny_ensemble
from tests.server_process import ServerProcess
from tests.serving.test_encoded_pictures import ENCODED, PIXELS

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype("<f4")
LENGTH = "Inference-Header-Content-Length"


class Connection:
    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=30)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, body, named)
        response = self._connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}

    def get(self, path: str) -> tuple[int, Any]:
        status, body, _ = self.send("GET", path)
        return status, json.loads(body)

    def infer(self, body: Any, path: str = "/v2/models/tiny/infer", **headers: str) -> tuple[int, Any]:
        status, answer, _ = self.send("POST", path, body, **headers)
        return status, json.loads(answer)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("repository")
    tiny_ensemble.write_repository(directory)
    with ServerProcess(directory, "--http-port", "0", "--max-message-bytes", "100000", "--allow-control") as server:
        yield server


@pytest.fixture
def connection(server: ServerProcess) -> Iterator[Connection]:
    assert server.http is not None
    connection = Connection(server.http)
    yield connection
    connection.close()


def request(**more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": [5, 4], "data": ROWS.ravel().tolist()}]} | more


def outputs(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer["outputs"]}


def test_health_and_readiness(connection: Connection) -> None:
    assert connection.get("/v2/health/live") == (200, {"live": True})
    assert connection.get("/v2/health/ready") == (200, {"ready": True})
    assert connection.get("/v2/models/tiny/ready") == (200, {"name": "tiny", "ready": True})
    assert connection.get("/v2/models/tiny/versions/1/ready") == (200, {"name": "tiny", "ready": True})


def test_metadata_configuration_and_statistics(connection: Connection) -> None:
    status, server_metadata = connection.get("/v2")
    assert (status, server_metadata["name"]) == (200, "thalweg")
    status, metadata = connection.get("/v2/models/tiny")
    assert status == 200
    assert (metadata["name"], metadata["versions"]) == ("tiny", ["1", "2"])
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    assert json.loads(metadata["properties"]["class_labels"]) == ["a", "b", "c"]
    status, config = connection.get("/v2/models/tiny/config")
    assert (status, config["max_batch_size"], config["input"][0]["data_type"]) == (200, 64, "TYPE_FP32")
    status, stats = connection.get("/v2/models/tiny/versions/1/stats")
    assert (status, [each["version"] for each in stats["model_stats"]]) == (200, ["1"])
    status, stats = connection.get("/v2/models/stats")
    assert {each["name"] for each in stats["model_stats"]} == {"tiny", "pictures"}


def test_json_answers_equal_the_definition(connection: Connection) -> None:
    status, answer = connection.infer(request(id="r1", parameters={"policy": "members", "members": "2,0"}))
    assert status == 200
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("r1", "tiny", "2")
    assert answer["parameters"] == {"policy": "members", "members_run": 2}
    np.testing.assert_allclose(outputs(answer)["probs"], tiny_ensemble.pooled_probs(ROWS, [2, 0]), atol=1e-6)
    assert outputs(answer)["entropy"].shape == (5,)


def test_data_may_be_nested_and_the_version_asked_for(connection: Connection) -> None:
    nested = request()
    nested["inputs"][0]["data"] = ROWS.tolist()
    status, answer = connection.infer(nested, "/v2/models/tiny/versions/1/infer")
    assert (status, answer["model_version"]) == (200, "1")
    np.testing.assert_allclose(outputs(answer)["probs"], tiny_ensemble.pooled_probs(ROWS), atol=1e-6)


def test_large_bodies_and_answers_are_as_good_as_small_ones(connection: Connection) -> None:
    rows = np.random.default_rng(1).normal(size=(64, 4)).astype("<f4")
    tensor = {"name": "input", "datatype": "FP32", "shape": [64, 4], "data": rows.ravel().tolist()}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "member_probs"}]}).ljust(90_000).encode()
    status, answer = connection.infer(body)
    assert status == 200
    expected = tiny_ensemble.member_probs(rows).swapaxes(0, 1)
    np.testing.assert_allclose(outputs(answer)["member_probs"], expected, atol=1e-6)


def test_classes_come_as_text(connection: Connection) -> None:
    wanted = [{"name": "probs", "parameters": {"classification": 2}}]
    status, answer = connection.infer(request(outputs=wanted))
    assert (status, answer["outputs"][0]["datatype"], answer["outputs"][0]["shape"]) == (200, "BYTES", [5, 2])
    best = tiny_ensemble.pooled_probs(ROWS).argmax(1)
    assert [int(cell.split(":")[1]) for cell in answer["outputs"][0]["data"][::2]] == best.tolist()


def binary_request(raw: bytes, **more: Any) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "input", "datatype": "FP32", "shape": [5, 4], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]} | more).encode()
    return head + raw, {LENGTH: str(len(head))}


def test_binary_tensors_in_and_out(connection: Connection) -> None:
    wanted = [{"name": "probs", "parameters": {"binary_data": True}}, {"name": "entropy"}]
    body, headers = binary_request(ROWS.tobytes(), outputs=wanted)
    status, answer, given = connection.send("POST", "/v2/models/tiny/infer", body, **headers)
    assert (status, given["content-type"]) == (200, "application/octet-stream")
    head = json.loads(answer[: int(given[LENGTH.lower()])])
    raw = answer[int(given[LENGTH.lower()]) :]
    assert head["outputs"][0]["parameters"]["binary_data_size"] == len(raw) == 5 * 3 * 4
    probs = np.frombuffer(raw, "<f4").reshape(5, 3)
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)
    np.testing.assert_allclose(head["outputs"][1]["data"], -(probs * np.log(probs)).sum(1), atol=1e-5)


def test_all_outputs_in_binary_by_one_parameter(connection: Connection) -> None:
    body, headers = binary_request(ROWS.tobytes(), parameters={"binary_data_output": True})
    _, answer, given = connection.send("POST", "/v2/models/tiny/infer", body, **headers)
    head = json.loads(answer[: int(given[LENGTH.lower()])])
    assert [output["parameters"]["binary_data_size"] for output in head["outputs"]] == [60, 20, 20]
    assert len(answer) == int(given[LENGTH.lower()]) + 100


def test_encoded_pictures_in_binary(connection: Connection) -> None:
    raw = pack(ENCODED)
    tensor = {"name": "input", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    status, answer = connection.infer(head + raw, "/v2/models/pictures/infer", **{LENGTH: str(len(head))})
    assert status == 200
    np.testing.assert_allclose(outputs(answer)["probs"], tiny_ensemble.pooled_probs(PIXELS), atol=1e-6)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(connection: Connection, encoding: str, compress: Any) -> None:
    body = compress(json.dumps(request(outputs=[{"name": "probs"}, {"name": "member_probs"}])).encode())
    headers = {"Content-Encoding": encoding, "Accept-Encoding": "gzip"}
    status, answer, given = connection.send("POST", "/v2/models/tiny/infer", body, **headers)
    assert (status, given["content-encoding"]) == (200, "gzip")
    probs = outputs(json.loads(gzip.decompress(answer)))["probs"]
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)


def changed(**change: Any) -> dict[str, Any]:
    return {"inputs": [request()["inputs"][0] | change]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "0 bytes that are no JSON"),
        (b"{", "1 bytes that are no JSON"),
        (b"[" * 100_00, "that are no JSON"),
        (b"[]", "the JSON is no object"),
        ({}, "there is no input; the model takes 'input'"),
        ({"inputs": "x"}, "'inputs' is x; expected a list"),
        ({"inputs": [1]}, "'inputs' holds something else than objects"),
        (request(id=7), "'id' is 7; expected a string"),
        (request(outputs=[{"name": "logits"}]), "unknown output 'logits'"),
        (request(parameters={"polcy": "mean"}), "unknown parameter 'polcy'; did you mean 'policy'?"),
        (
            request(parameters={"policy": [1]}),
            "parameter 'policy': a parameter is list; expected bool, int, float or str",
        ),
        (request(parameters={"priority": 2**70}), "parameter 'priority'"),
        (changed(name="pixels"), "unknown input 'pixels'; the model takes 'input'"),
        (changed(datatype="FP64"), "input 'input' is FP64; the model takes FP32"),
        (changed(datatype="nonsense"), "input 'input' is nonsense; the model takes FP32"),
        (changed(shape=[5, "4"]), "expected integers"),
        (changed(shape=[2**70, 4]), "expected integers"),
        (changed(shape=[2**62, 4]), "more elements than int64 can count"),
        (changed(data=[1.0]), "has 1 values in fp32_contents; [5, 4] is 20"),
        (changed(data=["x"] * 20), "'data' of input 'input' does not fit FP32"),
        (changed(data=[[1.0], 2.0]), "'data' mixes lists and values"),
        (changed(data=[1e300] * 20), "input 'input' holds inf in row 0; expected finite numbers"),
        (changed(data=[float("nan")] * 20), "input 'input' holds nan in row 0; expected finite numbers"),
        (changed(parameters={"binary_data_size": 80}), "'binary_data_size' is 80; 0 bytes follow the JSON"),
        (changed(parameters={"binary_data_size": -1}), "'binary_data_size' is -1; 0 bytes follow the JSON"),
    ],
)
def test_bad_bodies_are_refused(connection: Connection, body: Any, message: str) -> None:
    status, answer = connection.infer(body)
    assert status == 400
    assert message in answer["error"]
    assert connection.infer(request())[0] == 200


@pytest.mark.parametrize("length", ["99999", "-1", "x", "9" * 30])
def test_a_header_length_beyond_the_body_is_refused(connection: Connection, length: str) -> None:
    status, answer = connection.infer(request(), **{LENGTH: length})
    assert status == 400
    assert LENGTH in answer["error"]


def test_bytes_that_no_input_claims_are_refused(connection: Connection) -> None:
    body, headers = binary_request(ROWS.tobytes())
    status, answer = connection.infer(body + b"xyz", **headers)
    assert (status, answer["error"][:42]) == (400, "3 bytes are left after the inputs; expecte")


def test_every_error_is_json_with_its_status(connection: Connection) -> None:
    for status, method, path in (
        (404, "POST", "/v2/models/other/infer"),
        (404, "POST", "/v2/models/tiny/versions/9/infer"),
        (404, "GET", "/v2/models/other"),
        (404, "GET", "/v2/models/other/ready"),
        (404, "GET", "/v2/models/..%2F..%2Fetc"),
        (404, "GET", "/nothing"),
        (405, "GET", "/v2/models/tiny/infer"),
        (404, "POST", "/v2/repository/models/other/load"),
    ):
        body = json.dumps(request()).encode() if path.endswith("infer") else None
        found, answer, _ = connection.send(method, path, body)
        assert (found, list(json.loads(answer))) == (status, ["error"]), path


def test_bodies_beyond_the_limit_are_refused(connection: Connection, server: ServerProcess) -> None:
    status, answer = connection.infer(gzip.compress(bytes(10**8)), **{"Content-Encoding": "gzip"})
    assert (status, answer["error"]) == (413, "the body has more than 100000 bytes, decompressed")
    status, answer = connection.infer(b"x", **{"Content-Encoding": "br"})
    assert (status, answer["error"]) == (415, "content-encoding 'br'; expected gzip or deflate")
    status, answer = connection.infer(b"no gzip", **{"Content-Encoding": "gzip"})
    assert (status, answer["error"][:22]) == (400, "the body is no gzip: E")
    status, answer = connection.infer(gzip.compress(b"{}")[:-3], **{"Content-Encoding": "gzip"})
    assert (status, answer["error"]) == (400, "the body is no whole gzip stream")
    assert server.http is not None
    host, _, port = server.http.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        # No length and no end: refused by what has come.
        raw.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.sendall(b"%x\r\n" % 200_000 + bytes(200_000) + b"\r\n")
        assert b" 413 " in raw.recv(100)


def test_models_are_listed_unloaded_and_loaded(connection: Connection) -> None:
    def states() -> dict[str, str]:
        status, answer, _ = connection.send("POST", "/v2/repository/index")
        assert status == 200
        return {model["name"]: model["state"] for model in json.loads(answer)}

    assert states() == {"tiny": "READY", "pictures": "READY"}
    path = "/v2/repository/models/pictures"
    body = {"parameters": {"unload_dependents": False}}
    assert connection.send("POST", f"{path}/unload", body)[0] == 200
    assert states() == {"tiny": "READY", "pictures": "UNAVAILABLE"}
    assert connection.send("POST", f"{path}/load")[0] == 200
    assert states() == {"tiny": "READY", "pictures": "READY"}
    status, answer, _ = connection.send("POST", f"{path}/load", {"parameters": {"config": "{}"}})
    assert (status, json.loads(answer)["error"][:27]) == (400, "unknown parameter 'config';")


def test_while_draining_it_is_not_ready_and_answers_and_closes_each_connection(tiny_directory: Path) -> None:
    # Long enough that the test ends it, not the clock.
    with ServerProcess(tiny_directory, "--http-port", "0", "--drain-seconds", "600") as server:
        assert server.http is not None
        connection = Connection(server.http)
        status, _, headers = connection.send("POST", "/v2/models/tiny/infer", request())
        assert (status, headers.get("connection")) == (200, None)
        server.process.terminate()
        while connection.get("/v2/health/ready")[0] == 200:
            pass
        status, answer, headers = connection.send("POST", "/v2/models/tiny/infer", request())
        assert (status, headers.get("connection")) == (200, "close")
        np.testing.assert_allclose(outputs(json.loads(answer))["probs"], tiny_ensemble.pooled_probs(ROWS), atol=1e-6)
        assert connection.get("/v2/health/live") == (200, {"live": True})  # http.client connects again by itself
        connection.close()
        server.process.kill()
        server.process.communicate(timeout=60)


def test_tokens_hold_here_as_well(tiny_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("secret\n")
    with ServerProcess(tiny_directory, "--http-port", "0", "--tokens", str(tmp_path / "tokens")) as server:
        assert server.http is not None
        connection = Connection(server.http)
        assert connection.infer(request())[0] == 401
        assert connection.infer(request(), Authorization="Bearer wrong")[0] == 401
        assert connection.infer(request(), Authorization="Bearer secret")[0] == 200
        assert connection.get("/v2")[0] == 401
        assert connection.get("/v2/health/ready")[0] == 200
        connection.close()
        code, errors = server.stop()
    assert (code, "Traceback" in errors) == (0, False)
