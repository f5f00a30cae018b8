"""sanitize.html: one file, the picture inside, nothing fetched; and the tables, which the terminal shows too."""

import html
import json
from dataclasses import asdict

from trainer.report import document, figure, table
from trainer.sanitize.measure import Score, Scores, Share
from trainer.sanitize.results import Results

CAPTION = (
    "On test rows, BatchNorm recalibrated on the clean rows at every t. A short bar is the ensemble that a curve would "
    "be exported as; what is recommended is drawn wide. In grey: too near to an end, which is not trusted."
)


def summary_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads, and a line for the suspect and each candidate, on test rows; a star at what is recommended."""
    heads = ["network", "nets", "accuracy %", "95 %", "changed %"]
    if results.suspect.test.attack_success is not None:
        heads += ["attack success %", "95 %", "without trigger %"]
    lines = [["suspect, BatchNorm recalibrated", "1", *_cells(results.suspect.test)]]
    for candidate in results.candidates:
        star = " *" if candidate == results.recommended else ""
        lines.append([candidate.name + star, str(candidate.members), *_cells(candidate.scores.test)])
    return heads, lines


def curve_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """A line for each t, in the head the rate, on test rows; a star where a member may be exported."""
    low, high = results.options.allowed
    known = results.suspect.test.attack_success is not None
    heads = ["t"]
    for rate in results.curves:
        heads += [f"accuracy %, {rate}", f"{'attack success' if known else 'changed'} %, {rate}"]
    lines = []
    for points in zip(*results.curves.values(), strict=True):
        t = points[0].t
        line = [f"{t:.3g}{' *' if low <= t <= high else ''}"]
        for point in points:
            score = point.scores.test
            line += [_percent(score.accuracy), _percent(score.attack_success or score.changed)]
        lines.append(line)
    return heads, lines


def verdict(results: Results) -> str:
    """What is recommended and what it does, beside the suspect: a sentence or two."""
    best = results.recommended
    text = f"Recommended: {best.name}. On {best.scores.test.accuracy.of} test rows: {_told(results, best.scores)}"
    if best.scores.test.attack_success is None:
        text += "; whether a backdoor is left is not known, since no trigger was given"
    if results.exported != best:
        text += f". Exported, as asked: {results.exported.name}, {_told(results, results.exported.scores)}"
    return text + "."


def _told(results: Results, scores: Scores) -> str:
    before, after = results.suspect.test, scores.test
    text = f"accuracy {_percent(after.accuracy)} % (suspect {_percent(before.accuracy)} %)"
    if after.attack_success is None or before.attack_success is None:
        return f"{text}, {_percent(after.changed)} % answered otherwise than by the suspect"
    return f"{text}, attack success {_percent(after.attack_success)} % (suspect {_percent(before.attack_success)} %)"


def page(results: Results, picture: bytes) -> str:
    name = html.escape(results.config["name"])
    rows = ", ".join(f"{count} {split}" for split, count in results.rows.items())
    options = results.options
    low, high = options.allowed
    other = html.escape(options.second) if options.second else "the suspect with its hidden units permuted at random"
    trigger = f"Trigger {options.trigger}, target {options.target}." if options.trigger else ""
    body = f"""
<h1>{name}: repair of a network that may have been tampered with</h1>
<p class="lead">{html.escape(verdict(results))}</p>
<p>Suspect: {html.escape(options.suspect)}. The curve's other end: {other}. {html.escape(trigger)}
Every method was trained on the same {results.rows["train"]} clean rows, with {results.steps} steps in batches of the
same size, the same schedule and the same rates:
{", ".join(f"{rate:g}" for rate in options.rates)}. Rows: {html.escape(rows)}.</p>
<p>{html.escape(results.rule)} What stands below was measured on test rows, which took no part in that.</p>
{table(*summary_table(results))}
<p class="note"><em>95 %</em>: the interval of what stands before it (Wilson). <em>Changed</em>: answered with another
class than by the suspect. <em>Attack success</em>: rows of other classes that the trigger turns into the target;
without it, so many are taken for the target anyway. A star: recommended.</p>
{figure(picture, CAPTION)}
<h2>Along the curve</h2>
{table(*curve_table(results))}
<p class="note">Both ends compute what the suspects do; no member with t below {low:g} or above {high:g} is exported.
In the heads stands the rate.</p>
<h2>How it was made</h2>
<pre>{html.escape(json.dumps({"sanitize": asdict(options), "config": results.config}, indent=2))}</pre>
"""
    return document(f"{name}: sanitize", body)


def _cells(score: Score) -> list[str]:
    cells = [_percent(score.accuracy), _interval(score.accuracy), _percent(score.changed)]
    if score.attack_success is not None and score.without_trigger is not None:
        cells += [_percent(score.attack_success), _interval(score.attack_success), _percent(score.without_trigger)]
    return cells


def _percent(share: Share) -> str:
    return f"{100 * share.value:.1f}"


def _interval(share: Share) -> str:
    low, high = share.interval()
    return f"{100 * low:.1f} – {100 * high:.1f}"
