"""Spans as a collector receives them: a real server process, and a small OTLP collector in the test."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests.server_process import ServerProcess

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ROWS = np.arange(8, dtype="<f4").reshape(2, 4)
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "10"}  # ms


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.arrived = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self.arrived:
            for resource in request.resource_spans:
                self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self.arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, spans: int) -> dict[str, list[Any]]:
        """By name."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.spans) >= spans, timeout=30)
            by_name = defaultdict(list)
            for span in self.spans:
                by_name[span.name].append(span)
            return by_name


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"  # type: ignore[attr-defined]
    server.start()
    yield collector
    server.stop(None).wait()


def ask(server: ServerProcess, rows: int = 2, metadata: tuple[tuple[str, str], ...] = (), **parameters: str) -> Any:
    request = oip.ModelInferRequest(model_name="tiny", id="a1", raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=[rows, 4])
    for name, value in parameters.items():
        request.parameters[name].string_param = value
    with grpc.insecure_channel(server.grpc) as channel:
        return GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30, metadata=metadata)


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_request_is_a_span_below_the_clients_with_its_stages_below_it(tiny_directory: Path, collector: Any) -> None:
    with ServerProcess(tiny_directory, "--otlp-endpoint", collector.endpoint, environment=SOON) as server:
        ask(server, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
        spans = collector.wait_for(spans=4)
    (request,) = spans["ModelInfer"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    found = attributes(request)
    assert found == {
        "rpc.system": "grpc", "rpc.grpc.status_code": 0, "thalweg.request_id": "a1", "thalweg.model": "tiny",
        "thalweg.version": "1", "thalweg.policy": "mean", "thalweg.rows": 2,
    }  # fmt: skip
    previous_end = request.start_time_unix_nano
    for name in ("queue", "execute", "combine"):
        (stage,) = spans[name]
        assert (stage.trace_id, stage.parent_span_id) == (request.trace_id, request.span_id)
        # Two clocks were read one after the other; microseconds lie between.
        assert previous_end - 1_000_000 <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert attributes(stage) == {"thalweg.rows": 2}
        previous_end = stage.end_time_unix_nano
    assert previous_end <= request.end_time_unix_nano + 1_000_000
    assert collector.services == {"thalweg"}


def test_a_client_that_does_not_sample_is_not_traced_and_others_are(tiny_directory: Path, collector: Any) -> None:
    with ServerProcess(tiny_directory, "--otlp-endpoint", collector.endpoint, environment=SOON) as server:
        ask(server, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),))
        ask(server, metadata=(("traceparent", "no trace"),))
        spans = collector.wait_for(spans=4)
    assert TRACE not in {span.trace_id.hex() for span in spans["ModelInfer"]}
    assert [span.parent_span_id for span in spans["ModelInfer"]] == [b""]


def test_a_refused_request_is_a_span_with_its_error(tiny_directory: Path, collector: Any) -> None:
    with ServerProcess(tiny_directory, "--otlp-endpoint", collector.endpoint, environment=SOON) as server:
        with pytest.raises(grpc.RpcError):
            ask(server, rows=3)
        spans = collector.wait_for(spans=1)
    (request,) = spans["ModelInfer"]
    assert (request.status.code, request.status.message) == (2, "INVALID_ARGUMENT")
    assert attributes(request)["rpc.grpc.status_code"] == 3
    assert set(spans) == {"ModelInfer"}


def test_no_span_tells_which_member_was_drawn(tiny_directory: Path, collector: Any) -> None:
    with ServerProcess(tiny_directory, "--otlp-endpoint", collector.endpoint, environment=SOON) as server:
        for _ in range(8):  # so that different members are drawn
            ask(server, policy="random")
        spans = collector.wait_for(spans=8 * 4)
    own = {"rpc.system", "rpc.grpc.status_code", "thalweg.request_id", "thalweg.model", "thalweg.version"}
    for name, alike in spans.items():
        told = {tuple(sorted((k, v) for k, v in attributes(span).items())) for span in alike}
        assert len(told) == 1, name  # the same of every draw
        assert set(dict(next(iter(told)))) <= own | {"thalweg.policy", "thalweg.rows"}


def test_spans_that_wait_are_sent_at_the_end(tiny_directory: Path, collector: Any) -> None:
    late = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with ServerProcess(tiny_directory, "--otlp-endpoint", collector.endpoint, environment=late) as server:
        ask(server)
        assert server.stop()[0] == 0
    assert len(collector.wait_for(spans=4)["ModelInfer"]) == 1


def test_a_collector_that_is_not_there_costs_no_request_and_no_exit_code(tiny_directory: Path) -> None:
    with ServerProcess(tiny_directory, "--otlp-endpoint", "http://127.0.0.1:1", environment=SOON) as server:
        for _ in range(3):
            ask(server)
        code, errors = server.stop()
    assert code == 0
    assert "Traceback" not in errors
