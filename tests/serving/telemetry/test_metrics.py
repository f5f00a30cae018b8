"""Series: there from the start, gone with their model, and of a bounded number."""

import grpc
from prometheus_client import generate_latest

from serving.policy import Policy
from serving.telemetry.metrics import CODES, REJECTIONS, Metrics


def series(metrics: Metrics, **labels: str) -> set[str]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return {line.split(" ")[0] for line in lines if line[0] != "#" and all(pair in line for pair in wanted)}


def test_series_of_a_model_exist_from_the_start_and_go_with_it() -> None:
    metrics = Metrics()
    before = series(metrics)
    model = metrics.model("digits", "3", ["zero", "one"], 5)
    ours = series(metrics, model="digits", version="3")
    assert series(metrics) == before | ours
    assert len({name for name in ours if name.startswith("ensemble_requests_total")}) == len(CODES) * (len(Policy) + 1)
    assert len({name for name in ours if name.startswith("ensemble_rejected_total")}) == len(REJECTIONS)
    assert 'ensemble_predicted_rows_total{class="one",model="digits",version="3"}' in ours
    assert 'ensemble_model_info{classes="2",members="5",model="digits",version="3"}' in ours
    model.close()
    assert series(metrics) == before


def test_what_a_last_request_counts_after_the_end_brings_nothing_back() -> None:
    metrics = Metrics()
    before = series(metrics)
    model = metrics.model("digits", "3", ["zero", "one"], 5)
    model.close()
    model.requests[Policy.MEAN, grpc.StatusCode.OK].inc()
    model.queue_seconds.observe(0.1)
    model.rejected["expired"].inc()
    assert series(metrics) == before


def test_a_version_that_replaces_itself_keeps_its_series() -> None:
    metrics = Metrics()
    old = metrics.model("digits", "3", ["zero", "one"], 5)
    new = metrics.model("digits", "3", ["zero", "one", "two"], 6)
    old.close()
    new.rows.inc(2)
    labels = {"model": "digits", "version": "3"}
    assert metrics.registry.get_sample_value("ensemble_rows_total", labels) == 2
    assert metrics.registry.get_sample_value("ensemble_predicted_rows_total", labels | {"class": "two"}) == 0
    new.close()
    assert not series(metrics, model="digits")


def test_two_versions_are_told_apart() -> None:
    metrics = Metrics()
    old, new = (metrics.model("digits", version, ["zero", "one"], 5) for version in ("1", "2"))
    old.rows.inc(1)
    new.rows.inc(2)
    value = metrics.registry.get_sample_value
    assert value("ensemble_rows_total", {"model": "digits", "version": "1"}) == 1
    assert value("ensemble_rows_total", {"model": "digits", "version": "2"}) == 2


def test_requests_that_name_no_model_of_ours_share_one_series() -> None:
    metrics = Metrics()
    labels = {"model": "", "version": "", "policy": "", "code": "NOT_FOUND"}
    assert metrics.registry.get_sample_value("ensemble_requests_total", labels) == 0


class Gpu:
    name, threads = "onnxruntime-cuda", 1

    def __init__(self, memory: tuple[int, int] | None) -> None:
        self.now = memory

    def memory(self) -> tuple[int, int] | None:
        return self.now


def test_the_devices_memory_is_read_at_each_scrape() -> None:
    metrics, engine = Metrics(), Gpu((1, 79))
    metrics.watch(engine)  # type: ignore[arg-type]
    for engine.now in ((30, 50), (70, 10)):
        for state, expected in zip(("used", "free"), engine.now, strict=True):
            assert metrics.registry.get_sample_value("ensemble_device_memory_bytes", {"state": state}) == expected


def test_a_cpu_has_no_series_of_device_memory() -> None:
    metrics = Metrics()
    metrics.watch(Gpu(None))  # type: ignore[arg-type]
    assert not {name for name in series(metrics) if name.startswith("ensemble_device_memory")}
    assert 'ensemble_engine_info{engine="onnxruntime-cuda",threads="1"}' in series(metrics)
