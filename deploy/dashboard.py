"""Writes dashboard.json, for Grafana 10.4 or newer: `python deploy/dashboard.py`.

Panels stand in the order in which one looks: is it up, what comes, how long it takes, where, how the answers look. All
series are those of docs/operations.md, "Metrics", and of the recording rules in base/alerts.yaml.
"""

import functools
import itertools
import string
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh, VariableSort

FILE = Path(__file__).with_suffix(".json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
SERVERS = 'job=~"$job",namespace=~"$namespace"'
MODELS = f'{SERVERS},model=~"$model",version=~"$version"'
RECORDED = 'namespace=~"$namespace",model=~"$model",version=~"$version"'  # of all replicas, so without a job
HEIGHT = 7

Query = tuple[str, str]  # expression, legend


def series(
    title: str, text: str, unit: str, *queries: Query, width: int = 8, stacked: bool = False
) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .unit(unit)
        .datasource(SOURCE)
        .span(width)
        .height(HEIGHT)
        .min(0)
        .draw_style(GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for letter, (expression, legend) in zip(string.ascii_uppercase, queries, strict=False):
        panel.with_target(prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend))
    return panel


quarter = functools.partial(series, width=6)


def number(title: str, text: str, unit: str, expression: str) -> stat.Panel:
    query = prometheus.Dataquery().ref_id("A").expr(expression).legend_format("").instant()
    panel = stat.Panel().title(title).description(text).unit(unit).datasource(SOURCE).span(4).height(4)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).with_target(query)


def quantiles(metric: str, selector: str = MODELS) -> list[Query]:
    buckets = f"sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {buckets})", f"p{100 * q:g}") for q in (0.5, 0.9, 0.99)]


def mean(metric: str, by: str = "") -> str:
    """Of a histogram; no value where nothing was observed."""
    total, count = (f"sum{by} (rate({metric}_{end}{{{MODELS}}}[$__rate_interval]))" for end in ("sum", "count"))
    return f"{total} / ({count} > 0)"


def rate(metric: str, by: str, selector: str = MODELS) -> str:
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


BY_MODEL = " by (model, version)"
NAMED = "{{model}} {{version}}"

NOW = [
    number("Ready", "Replicas that take requests.", "none", f"sum(ensemble_ready{{{SERVERS}}})"),
    number(
        "Not ready",
        "Replicas that run and take none: they load, or drain.",
        "none",
        f"count(ensemble_ready{{{SERVERS}}}) - sum(ensemble_ready{{{SERVERS}}})",
    ),
    number(
        "Requests",
        "Answered now, refusals among them.",
        "reqps",
        f"sum(rate(ensemble_requests_total{{{SERVERS}}}[$__rate_interval]))",
    ),
    number(
        "Not OK",
        "Share of requests that did not end with OK.",
        "percentunit",
        f'1 - sum(rate(ensemble_requests_total{{{SERVERS},code="OK"}}[$__rate_interval]))'
        f" / (sum(rate(ensemble_requests_total{{{SERVERS}}}[$__rate_interval])) > 0)",
    ),
    number(
        "p99",
        "99 of 100 requests that were not refused were answered within this time.",
        "s",
        quantiles("ensemble_request_seconds")[-1][0],
    ),
    number(
        "Certificate",
        "Until the first certificate of a replica ends. No data without TLS.",
        "s",
        f"min(ensemble_certificate_expiry_timestamp_seconds{{{SERVERS}}}) - time()",
    ),
]

TRAFFIC = [
    series(
        "Requests by code",
        "What requests ended with. RESOURCE_EXHAUSTED: the queue was full, or a client's budget used up.",
        "reqps",
        (rate("ensemble_requests_total", "code", SERVERS), "{{code}}"),
        stacked=True,
    ),
    series(
        "Requests by policy",
        "How the rows were to be answered; empty: refused before that was read.",
        "reqps",
        (rate("ensemble_requests_total", "model, policy", SERVERS), "{{model}} {{policy}}"),
        stacked=True,
    ),
    series(
        "Requests by replica",
        "Unequal shares: clients hold one connection each, or do not balance.",
        "reqps",
        (rate("ensemble_requests_total", "instance", SERVERS), "{{instance}}"),
    ),
]

LATENCY = [
    series(
        "Latency", "Arrival to answer, of requests that were not refused.", "s", *quantiles("ensemble_request_seconds")
    ),
    series(
        "Mean latency by phase",
        "Queue: waiting for a batch. Execute and combine: the batch. The rest: reading, decoding and writing.",
        "s",
        (mean("ensemble_queue_seconds"), "queue"),
        (mean("ensemble_execute_seconds"), "execute"),
        (mean("ensemble_combine_seconds"), "combine"),
        (
            f"clamp_min({mean('ensemble_request_seconds')} - ({mean('ensemble_queue_seconds')})"
            f" - ({mean('ensemble_execute_seconds')}) - ({mean('ensemble_combine_seconds')}), 0)",
            "rest",
        ),
        stacked=True,
    ),
    series("Time in the queue", "What to scale on.", "s", *quantiles("ensemble_queue_seconds")),
]

BATCHING = [
    quarter(
        "Rows in a batch",
        "Rows that ran together.",
        "none",
        *quantiles("ensemble_batch_rows"),
        (mean("ensemble_batch_rows"), "mean"),
    ),
    quarter("Time of a batch in the members", "By model.", "s", (mean("ensemble_execute_seconds", BY_MODEL), NAMED)),
    quarter("Rows", "Rows answered.", "rowsps", (rate("ensemble_rows_total", "model, version"), NAMED)),
    quarter(
        "Members run for a row",
        "Below all of them with policies members, random, curve and cascade.",
        "none",
        (
            f"{rate('ensemble_members_run_total', 'model, version')}"
            f" / ({rate('ensemble_rows_total', 'model, version')} > 0)",
            NAMED,
        ),
    ),
]

QUEUE = [
    quarter(
        "Rows that wait",
        "In all replicas, and how many may wait: what comes beyond is refused.",
        "none",
        (f"sum by (model, version) (ensemble_queue_rows{{{MODELS}}})", NAMED),
        (f"sum(ensemble_queue_limit_rows{{{MODELS}}})", "limit"),
    ),
    quarter(
        "Requests that wait, for each replica",
        "Queue seconds a second (Little): what autoscalers compare with 4.",
        "none",
        (rate("ensemble_queue_seconds_sum", "instance"), "{{instance}}"),
    ),
    quarter(
        "Refused or left the queue unrun",
        "Over the client's budget, queue full, expired in it, or taken back by the client.",
        "reqps",
        (rate("ensemble_rejected_total", "reason"), "{{reason}}"),
        stacked=True,
    ),
    quarter(
        "In flight",
        "Requests that came and are not answered yet.",
        "none",
        (f"sum by (instance) (ensemble_requests_in_flight{{{SERVERS}}})", "{{instance}}"),
    ),
]

MACHINE = [
    series(
        "GPU memory",
        "Of each replica's GPU, whoever uses it. No data on CPUs.",
        "bytes",
        (f'ensemble_device_memory_bytes{{{SERVERS},state="used"}}', "{{instance}} used"),
        (f'ensemble_device_memory_bytes{{{SERVERS},state="free"}}', "{{instance}} free"),
    ),
    series(
        "Memory", "Resident, of each process.", "bytes", (f"process_resident_memory_bytes{{{SERVERS}}}", "{{instance}}")
    ),
    series(
        "CPUs",
        "Busy, of each process. Flat at the limit: it is throttled.",
        "none",
        (f"rate(process_cpu_seconds_total{{{SERVERS}}}[$__rate_interval])", "{{instance}}"),
    ),
]


def against_the_week(record: str) -> list[Query]:
    return [
        (f"{record}{{{RECORDED}}}", f"{NAMED}, last hour"),
        (f"avg_over_time({record}{{{RECORDED}}}[6d] offset 1d)", f"{NAMED}, week before"),
    ]


QUALITY = [
    series(
        "Entropy of the answers",
        "How unsure. It rises with rows that the model does not know.",
        "none",
        (mean("ensemble_entropy_nats", BY_MODEL), f"{NAMED}, now"),
        *against_the_week("thalweg:entropy_nats:mean1h"),
    ),
    series(
        "Disagreement of the members (mutual information)",
        "It rises on rows unlike those of training.",
        "none",
        (mean("ensemble_mutual_information_nats", BY_MODEL), f"{NAMED}, now"),
        *against_the_week("thalweg:mutual_information_nats:mean1h"),
    ),
    series(
        "Members with another class than the answer",
        "Mean share, of rows that several members answered.",
        "percentunit",
        (mean("ensemble_disagreement_ratio", BY_MODEL), NAMED),
    ),
    series(
        "Classes of the answers",
        "Shares of rows.",
        "percentunit",
        (
            f"{rate('ensemble_predicted_rows_total', 'class')}"
            f" / on () group_left () (sum(rate(ensemble_predicted_rows_total{{{MODELS}}}[$__rate_interval])) > 0)",
            "{{class}}",
        ),
        stacked=True,
    ),
    series(
        "Answers that moved to other classes",
        "Since the week before: half the sum of the changes in shares. 0.2 alerts.",
        "percentunit",
        (
            "sum by (model, version) (abs("
            f"thalweg:class_share:ratio1h{{{RECORDED}}}"
            f" - avg_over_time(thalweg:class_share:ratio1h{{{RECORDED}}}[6d] offset 1d))) / 2",
            NAMED,
        ),
    ),
    series(
        "Rows close to an earlier one",
        "Of the same client: repeats, or an attack that changes a row a little at a time. No data where it is off.",
        "rowsps",
        (rate("ensemble_near_duplicate_rows_total", "model, version"), NAMED),
    ),
]

LIFE = [
    quarter(
        "Served by",
        "Replicas that serve each version; unequal for long: some do not take it up.",
        "none",
        (f"count by (model, version) (ensemble_model_info{{{MODELS}}})", NAMED),
    ),
    quarter(
        "Loads",
        "Ensembles loaded, and refused, in five minutes.",
        "none",
        (f"sum by (result) (increase(ensemble_loads_total{{{SERVERS}}}[5m]))", "{{result}}"),
    ),
    quarter(
        "Starts",
        "How long each process has run.",
        "s",
        (f"time() - process_start_time_seconds{{{SERVERS}}}", "{{instance}}"),
    ),
    quarter(
        "Calls without a known token",
        "Refused unread.",
        "reqps",
        (rate("ensemble_unauthenticated_total", "instance", SERVERS), "{{instance}}"),
    ),
]

ROWS: Sequence[tuple[str, Sequence[timeseries.Panel | stat.Panel]]] = [
    ("Now", NOW),
    ("Traffic", TRAFFIC),
    ("Latency", LATENCY),
    ("Batching", BATCHING),
    ("Queue", QUEUE),
    ("Machine", MACHINE),
    ("How the answers look", QUALITY),
    ("Versions and processes", LIFE),
]


def variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def build() -> str:
    board = (
        dashboard.Dashboard("Thalweg")
        .uid("thalweg")
        .tags(["thalweg"])
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(variable("job", "Job", "label_values(ensemble_ready, job)"))
        .with_variable(variable("namespace", "Namespace", 'label_values(ensemble_ready{job=~"$job"}, namespace)'))
        .with_variable(variable("model", "Model", f"label_values(ensemble_model_info{{{SERVERS}}}, model)"))
        .with_variable(
            variable("version", "Version", f'label_values(ensemble_model_info{{{SERVERS},model=~"$model"}}, version)')
        )
    )
    numbers = itertools.count(1)
    for title, panels in ROWS:
        board.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            board.with_panel(panel.id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(build())
