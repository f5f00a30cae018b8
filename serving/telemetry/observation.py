"""What becomes of each request, however it ends: counted, logged and traced in one place, before the client knows."""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from serving.errors import ServingError
from serving.telemetry import logs
from serving.telemetry.metrics import NO_POLICY, REFUSALS, Metrics, ModelMetrics
from serving.telemetry.stage import Stage
from serving.telemetry.traces import Tracer

logger = logging.getLogger(__name__)


@dataclass
class Observation:
    """Filled in as the request gets on; what it holds at the end is what is told."""

    request_id: str
    arrived: float  # monotonic
    model: ModelMetrics | None = None
    policy: str = NO_POLICY
    rows: int = 0
    stages: list[Stage] = field(default_factory=list)


class Observer:
    def __init__(self, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self._tracer = tracer

    @contextmanager
    def request(
        self, name: str, message_id: str, metadata: Mapping[str, str | bytes], remaining_s: float | None
    ) -> Iterator[Observation]:
        """name: of the method. remaining_s: until the client's deadline, if it has one.

        Raises what the body raises; but what is no ServingError, and so a fault of ours, as one without detail.
        """
        seen = Observation(logs.request_id(message_id, metadata), time.monotonic())
        fields = {"request_id": seen.request_id}
        span = self._tracer.begin(name, metadata) if self._tracer else None
        if span is not None:
            fields["trace_id"] = f"{span.get_span_context().trace_id:032x}"
        token = logs.context.set(fields)
        self._metrics.in_flight.inc()
        code = grpc.StatusCode.OK
        reason = ""
        try:
            yield seen
        except ServingError as error:
            code, reason = error.code, str(error)
            if code is grpc.StatusCode.INTERNAL:
                logger.error("request failed reason=%s", reason)
            raise
        except asyncio.CancelledError:
            # gRPC cancels the call at its deadline as well; the client's cancellation can come a little before.
            expired = remaining_s is not None and time.monotonic() - seen.arrived > remaining_s - 0.05
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            logger.exception("request failed")
            raise ServingError("internal error") from None
        finally:
            self._metrics.in_flight.dec()
            self._count(seen, code)
            self._log(seen, code, reason)
            if self._tracer is not None and span is not None:
                self._tracer.end(span, code, _attributes(seen), seen.stages)
            logs.context.reset(token)

    def undecodable(self) -> None:
        """Bytes came that are no inference request."""
        self._metrics.unknown[NO_POLICY, grpc.StatusCode.INVALID_ARGUMENT].inc()

    def _count(self, seen: Observation, code: grpc.StatusCode) -> None:
        requests = seen.model.requests if seen.model else self._metrics.unknown
        requests[seen.policy, code].inc()
        if seen.model is not None:
            seconds = time.monotonic() - seen.arrived
            seen.model.statistics.ended(code is grpc.StatusCode.OK, seen.rows, seconds, seen.stages)
            if code not in REFUSALS:
                seen.model.request_seconds.observe(seconds)

    def _log(self, seen: Observation, code: grpc.StatusCode, reason: str) -> None:
        if not logger.isEnabledFor(logging.DEBUG):
            return
        seconds = {stage.name: round(stage.end - stage.start, 6) for stage in seen.stages}
        logger.debug(
            "request model=%s version=%s policy=%s rows=%d code=%s seconds=%.6f queue_seconds=%s "
            "execute_seconds=%s combine_seconds=%s reason=%s",
            seen.model.name if seen.model else "", seen.model.version if seen.model else "", seen.policy, seen.rows,
            code.name, time.monotonic() - seen.arrived,
            *(seconds.get(name) for name in ("queue", "execute", "combine")), reason,
        )  # fmt: skip


def _attributes(seen: Observation) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"thalweg.request_id": seen.request_id}
    if seen.model is not None:
        attributes |= {"thalweg.model": seen.model.name, "thalweg.version": seen.model.version}
    if seen.policy:
        attributes |= {"thalweg.policy": str(seen.policy), "thalweg.rows": seen.rows}
    return attributes
