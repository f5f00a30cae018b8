"""evaluation.html: one file, pictures inside, nothing fetched."""

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial

from trainer import report
from trainer.evaluation_results import Evaluation
from trainer.metrics import Detection
from trainer.report import WIDE, document, line, section, table

METRICS = ("train_loss", "train_error", "test_error", "test_nll")
DETECTION_SCORES = ("entropy", "mutual information", "energy")  # of scores.Tempered.unfamiliarity
DETECTION_HEADS = [f"{what}, {score}" for score in DETECTION_SCORES for what in ("AUROC", "FPR95")]
DETECTION_NOTE = "FPR95: of these rows, taken for own where 95 % of the own ones are. AUROC: higher is better."
CAPTIONS = {
    "paths": "Error and loss along the curve and the straight segment, BatchNorm recalibrated at every point "
    "(Figure 2; train loss with the L2 term, as in the paper).",
    "curve-ensembles": "Ensembles of points of the curve (section 4.3); the dashed lines are with temperatures.",
    "two-networks": "Test error of the ensemble of φ(0) and one more network, by the distance walked to it (Figure 4). "
    "The random segment is as long as the straight one.",
    "trivial-curve": "The trivial curve of appendix A.6, through the origin of weight space: its error is no higher "
    "than the endpoints', but nothing is gained by averaging, and its loss goes up.",
    "planes": "Planes through three networks (Figures 1, 7 and 8). Dashed: the straight segment; solid: the curve.",
    "error-over-epochs": "Test error over training time (Figure 6), temperatures 1.",
    "calibration": "Confidence less accuracy, in bins of equally many test rows; in the title the debiased "
    "calibration error (Kumar et al. 2019). Above 0 is too sure.",
    "disagreement": "Share of test rows on which two members predict different classes; members in serving order.",
}


def page(found: Evaluation, pictures: dict[str, bytes]) -> str:
    """pictures: by name, of CAPTIONS."""
    name = html.escape(found.config["name"])
    rows = ", ".join(f"{count} {split}" for split, count in found.rows.items())

    shown = partial(report.shown, pictures, CAPTIONS)

    absent = "".join(f"<li>{html.escape(what)}: {html.escape(why)}</li>" for what, why in found.absent.items())
    body = f"""
<h1>{name}: evaluation</h1>
<p class="lead">Seed {found.config["seed"]}. Rows: {html.escape(rows)}. Temperatures are fitted on calibration rows,
everything else is measured on test rows, unless it says train.</p>
{_path_section(found)}{shown("paths")}
<h2>Ensembles</h2>
{table(*score_table(found))}
<p class="note">Lower is better, but for the log-likelihood. <em>Calibrated log-likelihood</em>: nats a row, by
test-time cross-validation of the mean without temperatures; <em>equivalent</em>: how many independent networks reach
it. <em>Disagreement</em>: rows with different classes, mean over pairs; beside it, over the mean error of a member.</p>
{_foreign(found)}{shown("curve-ensembles", "calibration", "disagreement")}
{section("Two networks", shown("two-networks"))}
{section("The trivial curve", shown("trivial-curve"))}
{_planes(found, shown("planes"))}
{section("Training time", shown("error-over-epochs"))}
{f"<h2>Not measured</h2><ul>{absent}</ul>" if absent else ""}
<h2>How it was made</h2>
<pre>{html.escape(json.dumps({"evaluate": asdict(found.options), "run": found.config}, indent=2))}</pre>
"""
    return document(f"{name}: evaluation", body, WIDE)


def path_lines(found: Evaluation) -> list[list[str]]:
    """The paper's Table 2: path, length ratio, and minimum, integral and maximum of each of METRICS."""
    if found.curve is None or found.segment is None:
        return []
    kind, bends = found.config["curve"]["kind"], found.config["curve"]["bends"]
    single = ["endpoints", "–"]
    for metric in METRICS:
        ends = getattr(found.curve, metric)[0], getattr(found.curve, metric)[-1]
        single += [_number(metric, min(ends)), "–", _number(metric, max(ends))]
    lines = [single]
    for name, path in (
        ("straight segment", found.segment),
        (f"{kind}, {bends} bend{'s' * (bends != 1)}", found.curve),
        ("trivial curve", found.trivial),
    ):
        if path is None:
            continue
        line = [name, f"{path.length / found.segment.length:.2f}"]
        for metric in METRICS:
            summary = path.summary(metric)
            line += [_number(metric, value) for value in (summary.minimum, summary.integral, summary.maximum)]
        lines.append(line)
    return lines


def score_table(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table of ensembles."""
    heads = ["predictor", "members", "epochs", "error, %", "error, no temperatures", "NLL", "NLL, no temperatures",
             "Brier", "ECE", "debiased calibration error", "calibrated log-likelihood", "equivalent",
             "disagreement, %", "over error"]  # fmt: skip
    return heads, [
        [
            score.predictor, str(score.members), str(score.training_epochs),
            f"{100 * score.quality.error:.2f}", f"{100 * score.untempered.error:.2f}",
            f"{score.quality.nll:.4f}", f"{score.untempered.nll:.4f}",
            f"{score.quality.brier:.4f}", f"{score.quality.ece:.4f}", f"{score.calibration.error:.4f}",
            f"{score.log_likelihood:.4f}", str(score.equivalent or "–"),
            f"{100 * score.mean_disagreement:.2f}" if score.members > 1 else "–",
            f"{score.normalised_disagreement:.2f}" if score.members > 1 else "–",
        ]
        for score in found.scores
    ]  # fmt: skip


def _number(metric: str, value: float) -> str:
    return f"{100 * value:.2f}" if metric.endswith("error") else f"{value:.4f}"


def _path_section(found: Evaluation) -> str:
    if found.curve is None:
        return ""
    lines = path_lines(found)
    top = '<tr><th rowspan="2">path</th><th rowspan="2">length ratio</th>' + "".join(
        f'<th colspan="3">{label}</th>' for label in ("train loss", "train error, %", "test error, %", "test NLL")
    )
    second = "".join("<th>min</th><th>int</th><th>max</th>" for _ in METRICS)
    return f"""
<h2>Along the path</h2>
<div class="wide"><table>{top}</tr><tr>{second}</tr>{"".join(line(cells) for cells in lines)}</table></div>
<p class="note">As the paper's Table 2, at {len(found.curve.t)} points equally spaced in t. Train loss: cross-entropy
and the L2 term, ½ · {found.config["sgd"]["weight_decay"]:g} · ‖w‖². Int: the integral by arc length over the length,
trapezoidal. Length ratio: to the straight segment. Test error of the pair of endpoints:
{100 * found.curve.pair_error[-1]:.2f} %.</p>"""


def _foreign(found: Evaluation) -> str:
    lines = list(_detections(found))
    if not lines:
        return ""
    heads = ["predictor", *DETECTION_HEADS]
    return f"""
<h3>Rows of {html.escape(found.options.ood)}</h3>
{table(heads, lines)}
<p class="note">How well each score tells {found.rows["ood"]} rows of another data set from the test rows.
{DETECTION_NOTE}</p>"""


def _detections(found: Evaluation) -> Iterator[list[str]]:
    for score in found.scores:
        if score.detections:
            yield [score.predictor, *detection_cells(score.detections)]


def detection_cells(detections: Mapping[str, Detection]) -> list[str]:
    """Under DETECTION_HEADS; dashes where a predictor has no such score."""
    cells = []
    for score in DETECTION_SCORES:
        found = detections.get(score)
        cells += ["–", "–"] if found is None else [f"{found.auroc:.4f}", f"{found.fpr95:.4f}"]
    return cells


def _planes(found: Evaluation, pictures: str) -> str:
    if not found.surfaces:
        return ""
    first = found.surfaces[0]
    return section(
        "Planes",
        f"""{pictures}<p class="note">{len(first.x)} × {len(first.y)} points; at each, BatchNorm is recalibrated and the
train loss (cross-entropy and L2 term) measured on {first.train_rows} training rows, the error on {first.test_rows} test
rows. Bands are finer towards the lowest value; what lies above the last has one colour.</p>""",
    )
