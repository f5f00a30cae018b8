"""Whether an expression of Prometheus means something: it parses, and the server has its metrics and labels."""

import functools
import re

import promql_parser

from serving.telemetry.metrics import Metrics

# What Prometheus and its operator add to each series.
TARGET_LABELS = {"job", "instance", "namespace", "pod", "container"}
# Labels whose values the server knows beforehand.
# Recorded series have none of them.
CLOSED = {"code", "policy", "reason", "result", "state"}

Series = dict[str, dict[str, set[str]]]  # by name, the values of each label


def problems(expression: str, recorded: Series | None = None) -> list[str]:
    """recorded: what rules make, which may be asked for as well. Grafana's variables stand for any text."""
    known = served() | (recorded or {})
    text = re.sub(r"\$__(rate_)?interval|\$__range", "5m", expression)
    try:
        tree = promql_parser.parse(text)
    except ValueError as error:
        return [f"'{expression}' does not parse: {error}"]
    found: list[str] = []

    def visit(node: promql_parser.Expr) -> None:
        selector = node.vector_selector if isinstance(node, promql_parser.MatrixSelector) else node
        if isinstance(selector, promql_parser.VectorSelector):
            found.extend(_of_selector(selector, known))

    promql_parser.walk(tree, visit)
    return [f"{problem} in '{expression}'" for problem in dict.fromkeys(found)]


def _of_selector(selector: promql_parser.VectorSelector, known: Series) -> list[str]:
    if selector.name not in known:
        return [f"there is no metric {selector.name}"]
    labels, found = known[selector.name], []
    for matcher in selector.matchers.matchers:
        if matcher.name not in labels and matcher.name not in TARGET_LABELS:
            found.append(f"{selector.name} has no label {matcher.name}")
        # A regular expression must meet some value, whatever it leaves out.
        elif matcher.name in CLOSED and not any(re.fullmatch(matcher.value, each) for each in labels[matcher.name]):
            found.append(f"{matcher.name} of {selector.name} is never {matcher.value}")
    return found


@functools.cache
def served() -> Series:
    """Of a server with one model."""
    metrics = Metrics()
    assert metrics.model("digits", "1", ["0", "1"], members=3).near_duplicate_rows is not None
    for state in ("used", "free"):
        metrics.device_memory.labels(state)
    metrics.engine.info({"engine": "onnxruntime", "threads": "2"})
    metrics.watch_certificate(lambda: 0.0)
    series: Series = {"up": {}}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels = series.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return series
