"""attack.html: one file, pictures inside, nothing fetched."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from trainer import report
from trainer.attack import ball
from trainer.attack.results import Check, Found
from trainer.attack.scores import CONFIDENCE
from trainer.attack.table import cells, heads
from trainer.report import WIDE, document, table

MARKS = "tr.failed td { background: #fff0e6; font-weight: 600; }"
CAPTIONS = {
    "accuracy": "Accuracy by attack; whiskers are the intervals of the table.",
    "radii": "Under PGD with one restart at each radius, each by itself. It must fall, and reach 0 where every row can "
    "become every other.",
    "along": "Expected loss on the way from the clean rows to the attacked ones, and as far in a random direction. "
    "Where gradients are masked, it does not rise.",
    "examples": "Clean rows, and what PGD made of them.",
}
READING = f"""<p class="note"><em>Random</em>: E[accuracy] of a member drawn for each row, over all members, without
noise of draws. <em>Mean</em>: accuracy of their pooled answer. <em>All members</em>: rows on which no draw is wrong.
In brackets the interval at {100 * CONFIDENCE:.0f} %, over the choice of test rows alone: Clopper–Pearson for shares of
rows, which is exact; for E[accuracy] Wilson's with the same N, approximate and on the wide side: a row's share of right
members varies no more than a 0 or 1 of the same mean. Networks are taken as given. The <em>worst</em> line takes for
each row the attack that leaves the fewest members right, for the mean any attack that fools it. All of these are upper
bounds of the accuracy under the best attack, which nobody knows.</p>"""


def page(found: Found, pictures: dict[str, bytes]) -> str:
    """pictures: by name, of CAPTIONS."""
    name = html.escape(f"{found.config['name']}, {found.method}")
    options = found.options

    shown = partial(report.shown, pictures, CAPTIONS)

    failed = [check for check in found.checks if not check.passed]
    warning = (
        f"<p><strong>{len(failed)} of {len(found.checks)} checks failed</strong>: figures may be too good (below).</p>"
        if failed
        else f"<p>All {len(found.checks)} checks of the attacks passed (below).</p>"
    )
    body = f"""
<h1>{name}: under attack</h1>
<p class="lead">Training seed {found.config["seed"]}, attack seed {options.seed}. {found.rows} test rows. Each may be
moved by {ball.NAMES[options.norm]} {options.epsilon:g} in units of the raw rows{_trained(found)}.</p>
{warning}
<h2>Accuracy, %</h2>
{table(heads(found, full=True), cells(found, full=True))}
{READING}
{shown("accuracy")}
<h2>Who was attacked</h2>
{table(["predictor", "members", "training epochs"], _predictors(found))}
<h2>Budgets</h2>
{table(["attack", "predictor", "budget", "seconds"], _budgets(found))}
<h2>Can the attacks be trusted?</h2>
{_checks(found.checks)}
{shown("radii", "along", "examples")}
<h2>How it was made</h2>
<pre>{html.escape(json.dumps({"attack": asdict(options), "run": found.config}, indent=2))}</pre>
"""
    return document(f"{name}: attack", body, WIDE + MARKS)


def _trained(found: Found) -> str:
    adversary = found.config["adversary"]
    if adversary["norm"] == "none":
        return "; the networks were trained without an adversary"
    return f"; the networks were trained against {ball.NAMES[adversary['norm']]} {adversary['epsilon']:g}"


def _predictors(found: Found) -> list[list[str]]:
    return [
        [predictor.name, str(predictor.members), str(predictor.training_epochs or "–")]
        for predictor in found.predictors
    ]


def _budgets(found: Found) -> list[list[str]]:
    lines = []
    for line in found.lines:
        if line.settings:
            budget = ", ".join(f"{value} {name}" for name, value in line.settings.items())
            lines.append([line.attack, line.predictor, budget, f"{line.seconds:.1f}"])
    return lines


def _checks(checks: Sequence[Check]) -> str:
    lines = "".join(
        f"<tr{'' if check.passed else ' class=failed'}><td>{html.escape(check.name)}</td>"
        f"<td>{'passed' if check.passed else 'FAILED'}</td><td>{html.escape(check.detail)}</td></tr>"
        for check in checks
    )
    return f'<div class="wide"><table><tr><th>check</th><th></th><th>found</th></tr>{lines}</table></div>'
