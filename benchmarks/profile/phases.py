"""How long a request takes by the server's own histograms: means between two looks at its metrics."""

import urllib.request
from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families

PHASES = ("queue", "execute", "combine")  # histograms of the same names, in seconds; the last two are of a batch
Totals = Mapping[str, tuple[float, float]]  # seconds, and how often


def totals(metrics: str) -> Totals:
    """metrics: the text that the server exposes. All models, policies and codes together."""
    found: dict[str, tuple[float, float]] = {}
    for family in text_string_to_metric_families(metrics):
        for name in ("request", *PHASES):
            if family.name == f"ensemble_{name}_seconds":
                sums, counts = (
                    sum(each.value for each in family.samples if each.name.endswith(end)) for end in ("_sum", "_count")
                )
                found[name] = sums, counts
    return found


def scrape(address: str) -> Totals:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
        return totals(response.read().decode())


def table(before: Totals, after: Totals) -> Iterator[str]:
    """Overhead: what a request takes beyond the execution of its networks, in the server and without gRPC."""
    us = {
        name: 1e6 * (after[name][0] - before[name][0]) / (after[name][1] - before[name][1])
        for name in ("request", *PHASES)
    }
    lines = {
        "a request, from the first line of its handler to the last": us["request"],
        "queue: until a thread takes it": us["queue"],
        "execute: the networks": us["execute"],
        "combine": us["combine"],
        "parse, count, respond, and threads that wake each other": us["request"] - sum(us[name] for name in PHASES),
        "all but execute": us["request"] - us["execute"],
    }
    yield "| by the server's own histograms | µs |"
    yield "|---|---|"
    yield from (f"| {name} | {each:.0f} |" for name, each in lines.items())
