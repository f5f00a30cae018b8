"""Lines of the log: values told apart, and nothing that a client sends begins a line of its own."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.telemetry import logs
from tests.server_process import ServerProcess

HOSTILE = 'x\n2026-01-01T00:00:00.000Z INFO serving "forged" level=error\r\u2028\x1b[31m\u202e'


def record(template: str, *arguments: object, error: Exception | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord("serving.server", logging.WARNING, __file__, 1, template, arguments, exc_info)


def as_json(*arguments: object, **options: Exception) -> dict[str, object]:
    text = logs.JsonFormatter().format(record(*arguments, **options))  # type: ignore[arg-type]
    assert "\n" not in text
    assert text.isascii()
    line = json.loads(text)
    assert isinstance(line, dict)
    return line


def as_text(*arguments: object, **options: Exception) -> str:
    return logs.TextFormatter().format(record(*arguments, **options))  # type: ignore[arg-type]


def test_json_has_a_field_for_each_value_of_its_own_type() -> None:
    line = as_json("loaded model=%s members=%d seconds=%.3f", "digits", 4, 0.25)
    assert line.pop("time")
    assert line == {
        "level": "warning", "logger": "serving.server", "event": "loaded", "model": "digits", "members": 4,
        "seconds": 0.25,
    }  # fmt: skip


def test_text_is_key_value() -> None:
    line = as_text("loaded model=%s members=%d labels=%s", "digits", 4, ["a", "b"])
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == """WARNING serving.server loaded model=digits members=4 labels="['a', 'b']\""""


def test_a_message_that_is_no_event_with_values_is_told_whole() -> None:
    assert as_json("auto chose %s: %s", "CPU", "no GPU")["event"] == "auto chose CPU: no GPU"
    assert as_text("100 % done").endswith("serving.server 100 % done")


@pytest.mark.parametrize("template", ["refused id=%s", "refused id=%r", "refused: %s", "%s"])
def test_text_holds_a_hostile_value_in_one_line(template: str) -> None:
    line = as_text(template, HOSTILE)
    assert len(line.splitlines()) == 1
    assert line.isascii()


def test_a_hostile_value_cannot_pass_for_another_field() -> None:
    line = as_json("refused id=%s level=%s", HOSTILE, "debug")
    assert (line["id"], line["level"]) == (HOSTILE, "warning")
    assert 'id="a level=error"' in as_text("refused id=%s", "a level=error")


@pytest.mark.parametrize("format_", [as_text, as_json])
def test_a_hostile_exception_stays_inside_its_record(format_: Callable[..., object]) -> None:
    line = format_("failed", error=ValueError(HOSTILE))
    if isinstance(line, str):
        first, *rest = line.splitlines()
        assert first.endswith("failed")
        assert rest
        assert all(text.startswith("    ") for text in rest)
    else:
        assert isinstance(line, dict)
        assert "forged" in line["exception"]


def test_what_is_logged_for_a_request_carries_its_id() -> None:
    token = logs.context.set({"request_id": HOSTILE})
    try:
        assert as_json("failed")["request_id"] == HOSTILE
        assert len(as_text("failed").splitlines()) == 1
    finally:
        logs.context.reset(token)
    assert "request_id" not in as_json("failed")


def test_the_clients_id_is_kept_and_cut_and_one_is_made_for_who_sends_none() -> None:
    assert logs.request_id("a1", {"x-request-id": "b2"}) == "a1"
    assert logs.request_id("", {"x-request-id": "b2"}) == "b2"
    assert logs.request_id("é" * 9999, {}) == "é" * logs.LONGEST_ID
    made = {logs.request_id("", {"x-request-id": b"\xff"}) for _ in range(100)}
    assert len(made) == 100


def test_a_servers_json_log_tells_each_request_by_its_id(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory, "--log-format", "json", "--log-level", "debug") as server:
        with grpc.insecure_channel(server.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)
            request = oip.ModelInferRequest(model_name="tiny", id=HOSTILE, raw_input_contents=[bytes(16)])
            request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
            stub.ModelInfer(request, timeout=30)
            request.model_name = "huge"
            request.id = ""
            with pytest.raises(grpc.RpcError):
                stub.ModelInfer(request, timeout=30, metadata=[("x-request-id", "b2")])
        code, errors = server.stop()
    assert code == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    good, bad = (line for line in lines if line["event"] == "request")
    assert good["request_id"] == HOSTILE
    assert (good["model"], good["policy"], good["rows"], good["code"]) == ("tiny", "mean", 1, "OK")
    assert 0 < good["execute_seconds"] <= good["seconds"]
    assert (bad["request_id"], bad["model"], bad["code"]) == ("b2", "", "NOT_FOUND")
    assert "unknown model 'huge'" in bad["reason"]
    (started,) = (line for line in lines if "settings" in line)
    assert started["settings"]["max_batch_rows"] == 64
