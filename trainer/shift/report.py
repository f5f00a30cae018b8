"""shift.html: one file, pictures inside, nothing fetched; and the tables, for the terminal too."""

import html
import json
from collections.abc import Collection
from dataclasses import asdict
from functools import partial

from trainer import report
from trainer.evaluation_report import DETECTION_HEADS, DETECTION_NOTE, detection_cells
from trainer.report import WIDE, document, section, table
from trainer.shift.corruptions import KINDS, SEVERITIES
from trainer.shift.results import METRICS, Metric, Shifted, UnderShift

CAPTIONS = {
    "severity": "By severity, mean over all kinds; 0 is clean.",
    "kinds": "NLL under each kind.",
    "risk-coverage": "The error of the surest rows, if only these are answered. Confidence is the greatest "
    "probability.",
    "detection": "How well corrupted rows are told from the clean ones, mean over all kinds; 0.5 is a coin.",
    "corruptions": "One test row under each kind, clean and at severities 1 to 5.",
}


def page(found: Shifted, pictures: dict[str, bytes]) -> str:
    """pictures: by name, of CAPTIONS."""
    name = html.escape(found.config["name"])
    rows = html.escape(", ".join(f"{count} of {split}" for split, count in found.rows.items()))

    shown = partial(report.shown, pictures, CAPTIONS)

    absent = "".join(f"<li>{html.escape(what)}: {html.escape(why)}</li>" for what, why in found.absent.items())
    body = f"""
<h1>{name}: quality under shift</h1>
<p class="lead">Seed {found.config["seed"]}. Rows: {rows}. Temperatures and thresholds are fitted on clean calibration
rows, as they are served.</p>
<h2>Clean and corrupted</h2>
{table(*summary_table(found))}
<p class="note">Clean, then the mean over {len(found.kinds)} kinds of corruption and {SEVERITIES} severities. Lower is
better, but for the log-likelihood and for what sets cover. The log-likelihood is <em>calibrated</em>: at temperatures
fitted on other rows of the same kind. Sets were fitted to hold the true class in {100 * found.options.level:g} % of
clean rows. AURC: the error of the surest rows, mean over how many are answered.</p>
{shown("severity")}{shown("kinds")}
<h2>Selective prediction</h2>
{shown("risk-coverage")}
{section("Corrupted rows told from clean ones", shown("detection"))}
{_unfamiliar(found)}
{section("Kinds of corruption", f"{shown('corruptions')}{table(*kinds_table(found.kinds))}" if found.kinds else "")}
{section("Not measured", f"<ul>{absent}</ul>" if absent else "")}
<h2>How it was made</h2>
<pre>{html.escape(json.dumps({"shift": asdict(found.options), "run": found.config}, indent=2))}</pre>
"""
    return document(f"{name}: quality under shift", body, WIDE)


def summary_table(found: Shifted) -> tuple[list[str], list[list[str]]]:
    """Heads and lines: each metric on clean rows, and its mean over corrupted ones."""
    heads = ["predictor", "members", "epochs", *(metric.title for metric in METRICS.values())]
    return heads, [
        [
            entry.predictor, str(entry.members), str(entry.training_epochs),
            *(_clean_and_corrupted(entry, metric) for metric in METRICS.values()),
        ]
        for entry in found.predictors
    ]  # fmt: skip


def _clean_and_corrupted(entry: UnderShift, metric: Metric) -> str:
    values = [metric.of(entry.clean)]
    if entry.corrupted:
        values.append(entry.corrupted_mean(metric.of))
    return " → ".join(f"{value:.{metric.digits}f}" for value in values)


def foreign_table(found: Shifted, source: str) -> tuple[list[str], list[list[str]]]:
    """How well each predictor tells another data set's rows from the test rows."""
    lines = [[entry.predictor, *detection_cells(entry.foreign[source])] for entry in found.predictors]
    return ["predictor", *DETECTION_HEADS], lines


def kinds_table(names: Collection[str]) -> tuple[list[str], list[list[str]]]:
    """Strengths by severity."""
    heads = ["kind", *map(str, range(1, SEVERITIES + 1)), "what it is"]
    return heads, [
        [kind.name, *(f"{strength:g}" for strength in kind.strengths), kind.meaning]
        for kind in KINDS if kind.name in names
    ]  # fmt: skip


def _unfamiliar(found: Shifted) -> str:
    parts = [
        f"<h3>Rows of {html.escape(source)}</h3>\n{table(*foreign_table(found, source))}"
        for source in found.options.ood
    ]
    note = f'<p class="note">How well each score tells these rows from the test rows. {DETECTION_NOTE}</p>'
    return section("Unfamiliar rows", "\n".join([*parts, note]) if parts else "")
