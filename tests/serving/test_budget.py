"""Buckets against slow ones that are counted out, and in a real server: over gRPC, streams, HTTP and our client."""

import contextlib
import hashlib
import http.client
import json
import re
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.budget import Budget
from serving.client import Client, Tls
from tests.server_process import ServerProcess
from tests.serving.ports.test_rest import Connection
from tests.serving.ports.test_transport import Authority

RATE, BURST = 4.0, 16.0  # powers of two, and times of sixteenths: every number is exact


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class SlowBucket:
    """As a textbook has it: tokens that drip in."""

    def __init__(self) -> None:
        self.tokens, self.at = BURST, 0.0

    def refill(self, now: float) -> None:
        self.tokens, self.at = min(BURST, self.tokens + RATE * (now - self.at)), now


def test_rows_are_taken_and_waits_told_as_by_a_bucket_that_drips() -> None:
    clock, slow, draw = Clock(), SlowBucket(), np.random.default_rng(0)
    budget = Budget(RATE, BURST, clock)
    refused = 0
    for _ in range(3000):
        clock.now += int(draw.exponential(20)) / 16
        rows = int(draw.integers(1, 17))
        slow.refill(clock.now)
        wait_s = budget.take("one", rows)
        assert wait_s == max(rows - slow.tokens, 0.0) / RATE
        slow.tokens -= 0 if wait_s else rows
        refused += wait_s > 0
    assert 500 < refused < 2500


def test_who_comes_when_told_is_answered_and_no_sooner() -> None:
    clock = Clock()
    budget = Budget(0.3, 10, clock)  # no power of two: floats round
    assert budget.take("one", 10) == 0.0
    for _ in range(100):
        wait_s = budget.take("one", 7)
        clock.now += wait_s - 0.001
        assert 0 < budget.take("one", 7) < 0.0011
        clock.now += 0.001
        assert budget.take("one", 7) == 0.0


def test_in_the_long_run_a_client_gets_its_burst_and_the_rate() -> None:
    clock = Clock()
    budget = Budget(RATE, BURST, clock)
    answered = 0
    for _ in range(16 * 100):
        answered += not budget.take("one", 1)
        clock.now += 1 / 16
    assert answered == BURST + RATE * 100 - 1  # the last tick refills for who asks after it


def test_each_client_has_its_own() -> None:
    budget = Budget(RATE, BURST, Clock())
    assert budget.take("one", 16) == 0.0
    assert budget.take("one", 1) == 0.25
    assert budget.take("two", 16) == 0.0


def test_nobody_is_better_off_for_having_been_forgotten() -> None:
    clock, draw = Clock(), np.random.default_rng(1)
    budget = Budget(RATE, BURST, clock, most_clients=3)
    slow: dict[str, SlowBucket] = {}
    answered = 0
    for _ in range(3000):
        clock.now += int(draw.exponential(4)) / 16
        client, rows = f"client-{draw.integers(8)}", int(draw.integers(1, 17))
        bucket = slow.setdefault(client, SlowBucket())
        bucket.refill(clock.now)
        if not budget.take(client, rows):
            assert bucket.tokens >= rows
            bucket.tokens -= rows
            answered += rows
        assert len(budget._buckets) <= 3
    assert answered > 1000


def test_a_clients_own_bucket_does_not_come_back_full_with_many_others_names() -> None:
    budget = Budget(RATE, BURST, Clock(), most_clients=3)
    assert budget.take("attacker", 16) == 0.0
    for i in range(10):
        budget.take(f"name-{i}", 1)
    assert budget.take("attacker", 1) == 0.25


def test_the_log_names_who_is_refused_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    budget = Budget(0.01, BURST, clock)
    for client in ("one", "two"):
        for _ in range(3):
            budget.take(client, 16)
    assert [record.getMessage().split()[-3] for record in caplog.records] == ["client=one", "client=two"]
    clock.now += 60
    budget.take("one", 16)
    assert len(caplog.records) == 3


ROWS = np.arange(16, dtype="<f4").reshape(4, 4)
BODY = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [4, 4], "data": ROWS.ravel().tolist()}]}
TOKENS = ("first-token", "second-token")
LIMITS = ("--query-budget-rate", "0.01", "--max-batch-rows", "4", "--query-budget-burst", "4")  # nothing comes in time


def message(rows: int = 4) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS[:rows].tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=[rows, 4])
    return request


def bearer(*tokens: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}") for token in tokens]


def refusal(stub: GRPCInferenceServiceStub, **options: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message(), **({"timeout": 30} | options))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value


def value(server: ServerProcess, series: str) -> float:
    """Of all series that begin so."""
    return sum(float(line.rpartition(" ")[2]) for line in scraped(server).splitlines() if line.startswith(series))


def scraped(server: ServerProcess) -> str:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as response:
        return str(response.read().decode())


def test_a_token_has_one_budget_over_grpc_streams_and_http(tiny_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("\n".join(TOKENS))
    with (
        ServerProcess(tiny_directory, "--tokens", str(tmp_path / "tokens"), "--http-port", "0", *LIMITS) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        first, second = (bearer(token) for token in TOKENS)
        stub.ModelInfer(message(3), timeout=30, metadata=first)
        error = refusal(stub, metadata=first)
        assert re.search(r"4 rows arrived .* used up; 4 are free in (29\d|300)\.\d+ s", error.details())
        trailers = dict(error.trailing_metadata())
        assert 290_000 < int(trailers["grpc-retry-pushback-ms"]) <= 300_000
        refusal(stub, metadata=bearer("first-token", "second-token"))  # the one that was checked counts

        streamed = list(stub.ModelStreamInfer(iter([message(), message(1)]), timeout=30, metadata=first))
        assert ["used up" in answer.error_message for answer in streamed] == [True, False]

        assert server.http is not None
        connection = Connection(server.http)
        for token, status in (("first-token", 429), ("second-token", 200), ("second-token", 429)):
            found, text, headers = connection.send(
                "POST", "/v2/models/tiny/infer", BODY, authorization=f"Bearer {token}"
            )
            assert found == status, text
        assert "used up" in json.loads(text)["error"]
        assert 390 < int(headers["retry-after"]) <= 400
        connection.close()
        refusal(stub, metadata=second)

        for _ in range(10):  # what is no query is free
            stub.ModelMetadata(oip.ModelMetadataRequest(name="tiny"), timeout=30, metadata=first)
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        refusals = 'ensemble_rejected_total{model="tiny",reason="over_budget",version="1"}'
        assert value(server, refusals) == 6
        text = scraped(server)
        _, log = server.stop()
    assert not any(token in text + log for token in TOKENS)
    named = re.findall(r"query budget is used up .*client=(\S+)", log)
    assert sorted(named) == [f"token-{hashlib.sha256(token.encode()).hexdigest()[:16]}" for token in TOKENS]


@pytest.fixture
def fast_server(tiny_directory: Path) -> Iterator[ServerProcess]:
    limits = ("--query-budget-rate", "4", "--max-batch-rows", "4", "--query-budget-burst", "4")
    with ServerProcess(tiny_directory, "--client-identity", "address", *limits) as server:
        yield server


def test_a_client_that_tries_again_by_itself_waits_as_long_as_it_is_told(fast_server: ServerProcess) -> None:
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.001s",
        "maxBackoff": "0.001s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    with grpc.insecure_channel(fast_server.grpc, [("grpc.service_config", config)]) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(2):
            stub.ModelInfer(message(), timeout=30)
    assert value(fast_server, 'ensemble_rejected_total{model="tiny",reason="over_budget"') == 1


def test_our_client_does_not_try_again(fast_server: ServerProcess) -> None:
    with Client(fast_server.grpc, "tiny") as client, pytest.raises(grpc.RpcError, match="used up"):
        client.predict(np.zeros((64, 4), np.float32))
    # Four requests are under way when the first refusal comes, of sixteen.
    assert value(fast_server, "ensemble_requests_total") <= 5


def test_a_renewed_certificate_of_the_same_subject_has_the_same_budget(tiny_directory: Path, tmp_path: Path) -> None:
    authority = Authority("authority", tmp_path)
    certificate, key = authority.issue("server")
    tls = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(authority.path))
    with ServerProcess(tiny_directory, *tls, *LIMITS, "--http-port", "0") as server:
        for subject, answered in (("one", True), ("one", False), ("two", True), ("two", False)):
            mine = Tls(authority.path, *authority.issue(subject))  # another key each time
            refused = contextlib.nullcontext() if answered else pytest.raises(grpc.RpcError, match="used up")
            with Client(server.grpc, "tiny", tls=mine) as client, refused:
                client.predict(ROWS)
        context = ssl.create_default_context(cafile=authority.path)
        context.load_cert_chain(*authority.issue("one"))
        assert server.http is not None
        https = http.client.HTTPSConnection(server.http, timeout=30, context=context)
        https.request("POST", "/v2/models/tiny/infer", json.dumps(BODY))
        assert https.getresponse().status == 429
        https.close()
        _, log = server.stop()
    assert set(re.findall(r'client="?(CN=\w+)', log)) == {"CN=one", "CN=two"}
