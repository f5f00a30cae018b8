"""OpenTelemetry: a span for each request, with its wait, the members' run and the combination as children.

Only with `--otlp-endpoint`, and only then are the packages imported (extra `[otel]`). The SDK's own variables hold:
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_*.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc

from serving.errors import StartupError
from serving.telemetry.stage import Stage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span


LONGEST_SECONDS = 2  # that one attempt to reach the collector may take, and so hold up the end of the process


class Tracer:
    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()  # what the environment says wins over our name
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "thalweg"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("thalweg")

    def begin(self, name: str, metadata: Mapping[str, str | bytes]) -> "Span":
        """The request's span, a child of the one that its metadata names (W3C `traceparent`)."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {key: value for key, value in metadata.items() if isinstance(value, str)}
        parent = TraceContextTextMapPropagator().extract(carrier)
        return self._tracer.start_span(name, parent, SpanKind.SERVER, attributes={"rpc.system": "grpc"})

    def end(
        self, span: "Span", code: grpc.StatusCode, attributes: Mapping[str, str | int], stages: list[Stage]
    ) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span.set_attributes({**attributes, "rpc.grpc.status_code": code.value[0]})
        if code is not grpc.StatusCode.OK:
            span.set_status(Status(StatusCode.ERROR, code.name))
        offset_ns = time.time_ns() - time.monotonic_ns()  # spans are told by the wall clock
        context = set_span_in_context(span)
        for stage in stages if span.is_recording() else []:
            child = self._tracer.start_span(
                stage.name,
                context,
                attributes={"thalweg.rows": stage.rows},
                start_time=int(stage.start * 1e9) + offset_ns,
            )
            child.end(int(stage.end * 1e9) + offset_ns)
        span.end()

    def close(self) -> None:
        """Sends what has not been sent, for at most a few seconds."""
        self._provider.shutdown()


def open_tracer(endpoint: str) -> Tracer:
    """endpoint: of an OTLP collector over gRPC, http://HOST:PORT or https://…. Raises StartupError."""
    if not endpoint.startswith(("http://", "https://")):
        raise StartupError(f"--otlp-endpoint is '{endpoint}'; expected http://HOST:PORT or https://HOST:PORT")
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return Tracer(OTLPSpanExporter(endpoint=endpoint, timeout=LONGEST_SECONDS))
    except ImportError as error:
        raise StartupError(f"--otlp-endpoint: {error}; pip install 'thalweg[otel]'") from None
