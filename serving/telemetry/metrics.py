"""Every Prometheus metric, declared in one place. Label sets exist from the start, so a rate is 0, not absent; the
series of a model go when it is unloaded. No series tells which member answered a row.
"""

import functools
import platform
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed

import grpc
import onnxruntime
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from serving.networks.engines.engine import Engine
from serving.policy import Policy
from serving.telemetry.quality import Families, Quality
from serving.telemetry.statistics import Statistics

# Geometric, 100 µs to 52 s: the ends of what a request can take.
SECONDS = tuple(1e-4 * 2**i for i in range(20))
ROWS = tuple(2.0**i for i in range(13))
CODES = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
)
# Answered in no time: among the others they would make a server look the faster, the more it refuses.
REFUSALS = CODES[1:4] + CODES[5:6]
REJECTIONS = ("over_budget", "queue_full", "expired", "cancelled")
LOADS = ("ok", "refused")
NO_MODEL = NO_POLICY = ""  # of requests that name no model of ours, or were refused before their policy was read
MODEL = ("model", "version")

prometheus_client.disable_created_metrics()  # a series more for each one, which nobody asks for


class Metrics:
    """Of the process. `model` gives the series of one model."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], list[ModelMetrics]] = {}  # of a version that replaces itself, two

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ensemble_{name}", text, [*MODEL, *labels], registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"ensemble_{name}", text, MODEL, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"ensemble_{name}", text, MODEL, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Inference requests answered", "policy", "code")
        self.rejected = counter("rejected", "Requests refused unrun", "reason")
        self.request_seconds = histogram("request_seconds", "Inference request, arrival to answer", SECONDS)
        self.queue_seconds = histogram("queue_seconds", "Wait of a request for its batch", SECONDS)
        self.execute_seconds = histogram("execute_seconds", "Running the members on a batch", SECONDS)
        self.combine_seconds = histogram("combine_seconds", "Combining the members' logits of a batch", SECONDS)
        self.batch_rows = histogram("batch_rows", "Rows in a batch", ROWS)
        self.rows = counter("rows", "Rows answered")
        self.members_run = counter("members_run", "Rows answered, times members on each")
        self.near_duplicate_rows = counter("near_duplicate_rows", "Rows close to an earlier one of the same client")
        self.queue_rows = gauge("queue_rows", "Rows waiting now")
        self.queue_limit_rows = gauge("queue_limit_rows", "Rows that may wait; what comes beyond is refused")
        self.info = Info("ensemble_model", "What is served", MODEL, registry=registry)
        self._of_models = [metric for metric in vars(self).values() if isinstance(metric, MetricWrapperBase)]
        registry.register(Families(self._qualities))

        self.unknown = _by_policy(self.requests, NO_MODEL, NO_MODEL)
        self.in_flight = Gauge(
            "ensemble_requests_in_flight", "Inference requests that came and are not answered yet", registry=registry
        )
        self.ready = Gauge("ensemble_ready", "1 while the server takes requests", registry=registry)
        self.loads = Counter("ensemble_loads", "Ensembles loaded, and refused", ["result"], registry=registry)
        self.unauthenticated = Counter(
            "ensemble_unauthenticated", "Calls without a token that the server knows", registry=registry
        )
        for result in LOADS:
            self.loads.labels(result)
        Info("ensemble_build", "What serves", registry=registry).info(
            {
                "version": installed("thalweg"),
                "python": platform.python_version(),
                "onnxruntime": onnxruntime.__version__,
            }
        )
        self.engine = Info("ensemble_engine", "What members run on", registry=registry)
        self.device_memory = Gauge(
            "ensemble_device_memory_bytes", "Memory of the device, whoever uses it", ["state"], registry=registry
        )
        ProcessCollector(registry=registry)

    def watch(self, engine: Engine) -> None:
        """Its device's memory from now on, read at each scrape; no series where that is the process's own."""
        self.engine.info({"engine": engine.name, "threads": str(engine.threads)})
        if engine.memory() is not None:
            self.device_memory.labels("used").set_function(lambda: (engine.memory() or (0, 0))[0])
            self.device_memory.labels("free").set_function(lambda: (engine.memory() or (0, 0))[1])

    def watch_certificate(self, expiry: Callable[[], float]) -> None:
        """Asked at each scrape; no series without TLS, or an alert on its expiry would fire where there is none."""
        gauge = Gauge(
            "ensemble_certificate_expiry_timestamp_seconds",
            "Unix time at which the server's certificate expires",
            registry=self.registry,
        )
        gauge.set_function(expiry)

    def model(self, name: str, version: str, class_labels: Sequence[str], members: int) -> "ModelMetrics":
        """Its series exist from now until its `close`."""
        with self._lock:
            model = ModelMetrics(self, name, version, class_labels)
            self.info.labels(name, version).info({"members": str(members), "classes": str(len(class_labels))})
            self._models.setdefault((name, version), []).append(model)
            return model

    def forget(self, model: "ModelMetrics") -> None:
        with self._lock:
            alike = self._models[model.name, model.version]
            alike.remove(model)
            if not alike:
                del self._models[model.name, model.version]
                for metric in self._of_models:
                    metric.remove_by_labels({"model": model.name, "version": model.version})

    def _qualities(self) -> list[tuple[tuple[str, str], Quality]]:
        with self._lock:
            return [(model, alike[-1].quality) for model, alike in self._models.items()]


class ModelMetrics:
    """The series of one version of one model. What is still counted after `close` is dropped."""

    def __init__(self, metrics: Metrics, name: str, version: str, class_labels: Sequence[str]) -> None:
        self.name, self.version = name, version
        self._metrics = metrics
        self.request_seconds = metrics.request_seconds.labels(name, version)
        self.queue_seconds = metrics.queue_seconds.labels(name, version)
        self.execute_seconds = metrics.execute_seconds.labels(name, version)
        self.combine_seconds = metrics.combine_seconds.labels(name, version)
        self.batch_rows = metrics.batch_rows.labels(name, version)
        self.rows = metrics.rows.labels(name, version)
        self.members_run = metrics.members_run.labels(name, version)
        self.queue_rows = metrics.queue_rows.labels(name, version)
        self.queue_limit_rows = metrics.queue_limit_rows.labels(name, version)
        self.requests = _by_policy(metrics.requests, name, version)
        self.rejected = {reason: metrics.rejected.labels(name, version, reason) for reason in REJECTIONS}
        self.quality = Quality(class_labels)
        self.statistics = Statistics()

    @functools.cached_property
    def near_duplicate_rows(self) -> Counter:
        """From now on; no series where nobody looks for them, or 0 would read as none."""
        return self._metrics.near_duplicate_rows.labels(self.name, self.version)

    def close(self) -> None:
        self._metrics.forget(self)


def _by_policy(requests: Counter, name: str, version: str) -> dict[tuple[str, grpc.StatusCode], Counter]:
    policies = [NO_POLICY, *map(str, Policy)] if name else [NO_POLICY]
    return {(policy, code): requests.labels(name, version, policy, code.name) for policy in policies for code in CODES}
