"""A real Prometheus scrapes a real server; promtool, the documentation and the server agree on every metric."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests.server_process import ROOT, ServerProcess

needs = {
    program: pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed (Debian package prometheus)"
    )
    for program in ("prometheus", "promtool")
}
NOT_HERE = {  # only with a GPU, TLS, --near-duplicates
    "ensemble_device_memory_bytes",
    "ensemble_certificate_expiry_timestamp_seconds",
    "ensemble_near_duplicate_rows_total",
}


@pytest.fixture(scope="module")
def used_server(tiny_directory: Path) -> Iterator[ServerProcess]:
    """It has answered every policy, and refused."""
    with ServerProcess(tiny_directory) as server, grpc.insecure_channel(server.grpc) as channel:
        for policy in ("mean", "random", "nonsense"):
            request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(32)])
            request.inputs.add(name="input", datatype="FP32", shape=[2, 4])
            request.parameters["policy"].string_param = policy
            try:
                GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
            except grpc.RpcError:
                assert policy == "nonsense"
        yield server


def samples(server: ServerProcess) -> set[str]:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
        return {sample.name for family in families for sample in family.samples}


def test_every_metric_is_documented_and_every_documented_one_is_there(used_server: ServerProcess) -> None:
    text = (ROOT / "docs/operations.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(ensemble_\w+)", text)) - NOT_HERE
    there = {name for name in samples(used_server) if name.startswith("ensemble_")}
    histograms = {name.removesuffix("_bucket") for name in there if name.endswith("_bucket")}
    parts = {f"{name}{suffix}" for name in histograms for suffix in ("_bucket", "_sum", "_count")}
    assert documented == (there - parts) | histograms


@needs["promtool"]
def test_promtool_finds_nothing_to_remark(used_server: ServerProcess) -> None:
    with urllib.request.urlopen(f"http://{used_server.metrics}/metrics") as response:
        text = response.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@needs["prometheus"]
@pytest.mark.slow
def test_every_metric_appears_in_a_real_prometheus(used_server: ServerProcess, tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: thalweg, static_configs: [{{targets: ['{used_server.metrics}']}}]}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
    with subprocess.Popen(["prometheus", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_scraped(address)
            stored = set(ask(address, "label/__name__/values"))
            assert samples(used_server) - stored == set()
            answered = ask(address, "query", query='sum(ensemble_requests_total{model="tiny",code="OK"})')
            assert answered["result"][0]["value"][1] == "2"
            queries = {
                "histogram_quantile(0.99, sum by (le) (ensemble_request_seconds_bucket))": lambda value: value > 0,
                "ensemble_queue_rows / ensemble_queue_limit_rows": lambda value: value == 0,
                "ensemble_entropy_nats_sum / ensemble_entropy_nats_count": lambda value: 0 < value < 1.1,
                "sum(ensemble_predicted_rows_total) / sum(ensemble_rows_total)": lambda value: value == 1,
            }
            for query, holds in queries.items():
                assert holds(float(ask(address, "query", query=query)["result"][0]["value"][1])), query
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ask(address: str, path: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as response:
        return json.load(response)["data"]


def wait_until_scraped(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if result := ask(address, "query", query='up{job="thalweg"}')["result"]:
                assert result[0]["value"][1] == "1"
                return
        except urllib.error.HTTPError as error:
            error.close()  # it still starts
        except urllib.error.URLError:
            pass  # it does not listen yet
        assert time.monotonic() < end, "Prometheus did not scrape the server"
        time.sleep(0.1)
