"""How long a request takes by the server's own histograms: means between two looks at its metrics."""

import urllib.request
from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families

PHASES = ("queue", "execute", "combine")  # histograms of the same names, in seconds; the last two are of a batch
Totals = Mapping[str, tuple[float, float]]  # seconds, and how often


def totals(metrics: str) -> Totals:
    """metrics: the text that the server exposes. All models, policies and codes together."""
    samples = {family.name: family.samples for family in text_string_to_metric_families(metrics)}

    def total(name: str, what: str) -> float:
        return sum(each.value for each in samples[f"ensemble_{name}_seconds"] if each.name.endswith(what))

    return {name: (total(name, "_sum"), total(name, "_count")) for name in ("request", *PHASES)}


def scrape(address: str) -> Totals:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
        return totals(response.read().decode())


def table(before: Totals, after: Totals) -> Iterator[str]:
    """Means of a request, its time in gRPC not among them; the last line is what the server adds to its networks."""
    us = {name: 1e6 * (after[name][0] - before[name][0]) / (after[name][1] - before[name][1]) for name in after}
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
