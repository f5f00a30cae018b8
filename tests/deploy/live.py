"""Three replicas under load and a Prometheus that scrapes them with our rules, a week of which passes in a minute."""

import contextlib
import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.render import DEPLOY
from tests.proxies import free_port

# How long what the rules and panels name takes here.
SHORT = {
    "6d": "20s", "1d": "20s", "1h": "6s", "30m": "2s", "15m": "20s", "10m": "3s", "5m": "4s", "2m": "3s", "1m": "1s",
}  # fmt: skip
# What Grafana would put for the dashboard's variables, with all of everything chosen.
VARIABLES = {"$__rate_interval": "5s", "$job": ".*", "$namespace": ".*", "$model": ".*", "$version": ".*"}


def shortened(text: str) -> str:
    return re.sub(r"\b(6d|1d|1h|30m|15m|10m|5m|2m|1m)\b(?=\]| *\)|$|\s)", lambda match: SHORT[match[1]], text)


def rules() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((DEPLOY / "base/alerts.yaml").read_text())["spec"]
    for group in spec["groups"]:
        group["interval"] = "500ms"
        for rule in group["rules"]:
            rule |= {key: shortened(rule[key]) for key in ("expr", "for") if key in rule}
    return spec


class Prometheus:
    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **parameters: object) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)["data"]

    def firing(self) -> set[str]:
        return {each["labels"]["alertname"] for each in self.ask("alerts")["alerts"] if each["state"] == "firing"}

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, f"{what}; firing: {sorted(self.firing())}"
            time.sleep(0.2)  # Prometheus has no other way to be asked

    def series(self, expression: str) -> list[Any]:
        """Of a panel's expression, those that have a number now."""
        found = self.ask("query", query=of_panel(expression))["result"]
        return [each for each in found if each["value"][1] != "NaN"]


def of_panel(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return shortened(expression)


@contextlib.contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """targets: HOST:PORT of the metrics."""
    (folder / "rules.yml").write_text(yaml.safe_dump(rules()))
    labels = {"namespace": "default"}
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [
            {"job_name": "thalweg", "static_configs": [{"targets": list(targets), "labels": labels}]},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    options = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)
        try:
            asked = Prometheus(address)
            end = time.monotonic() + 60
            while not _all_up(asked, len(targets)):
                assert process.poll() is None, (folder / "prometheus.log").read_text()
                assert time.monotonic() < end, "Prometheus did not scrape the servers"
                time.sleep(0.2)
            yield asked
        finally:
            process.terminate()
            process.wait(60)


def _all_up(asked: Prometheus, targets: int) -> bool:
    try:
        return len(asked.ask("query", query="up == 1")["result"]) == targets
    except urllib.error.HTTPError as error:
        error.close()
    except urllib.error.URLError:
        pass
    return False
