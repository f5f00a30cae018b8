"""Writes report.html: one file, pictures inside, nothing fetched."""

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from trainer import atomic_file, figures
from trainer.evaluate import ECE_BINS
from trainer.results import Results

CSS = """
:root { --ink: #1b1b1b; --soft: #666; --line: #ddd; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 60rem; margin: 3rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.6rem; }
p.lead, figcaption, .note { color: var(--soft); } figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
td.best { font-weight: 700; } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""
# For pages whose tables are wider than text should be.
WIDE = """
body { max-width: 80rem; } p, li, figcaption { max-width: 60rem; } figure img { max-width: 60rem; width: 100%; }
.wide { overflow-x: auto; } th { vertical-align: bottom; }
"""


def write(results: Results, versions: dict[str, str], commit: str, path: Path) -> None:
    """The report, and each picture beside it under figures/."""
    pictures = {"reliability": figures.reliability(results), "temperatures": figures.temperatures(results)}
    if results.curve is not None and results.segment is not None:
        pictures["path"] = figures.path(results, results.curve, results.segment)
        pictures["path-zoomed"] = figures.path_zoomed(results, results.curve)
    if results.fge is not None:
        pictures["fge-walk"] = figures.fge_walk(results, results.fge)
    _write_pictures(path.parent, pictures)
    atomic_file.write_bytes(path, _page(results, pictures, versions, commit).encode())


def publish(folder: Path, name: str, found: object, pictures: Mapping[str, bytes], page: str) -> tuple[Path, Path]:
    """Writes the page FOLDER/NAME.html and what it shows: NAME.json, of a dataclass, and each picture under figures/.

    Returns where the page is, and the numbers.
    """
    _write_pictures(folder, pictures)
    path, numbers = folder / f"{name}.html", folder / f"{name}.json"
    atomic_file.write_bytes(numbers, json.dumps(asdict(found), indent=1).encode())  # type: ignore[call-overload]
    atomic_file.write_bytes(path, page.encode())
    return path, numbers


def _write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    for name, png in pictures.items():
        atomic_file.write_bytes(folder / "figures" / f"{name}.png", png)


def _page(results: Results, pictures: dict[str, bytes], versions: dict[str, str], commit: str) -> str:
    config = results.config
    name = html.escape(config["name"])
    measured = f"{results.rows[0].quality.rows} test {'tokens' if results.next_token else 'rows'}"
    body = f"""
<h1>{name}: {html.escape(" and ".join(config["methods"]))}</h1>
<p class="lead">Seed {config["seed"]}. Everything below is measured on {measured} that no stage has seen;
temperatures were fitted on the calibration split.</p>

<h2>Quality</h2>
{_table(results)}
<p class="note">Lower is better everywhere. NLL in nats; ECE with {ECE_BINS} equal-width bins. <em>Epochs</em> counts
the training that a predictor needed from scratch, the pictures' evaluations not included.</p>
{_curve(results, pictures)}
{_fge(pictures)}
<h2>Calibration</h2>
{figure(pictures["reliability"], "Accuracy against confidence after temperatures; area is the share of rows.")}
{figure(pictures["temperatures"], "Fitted temperatures; below 1 sharpens.")}

<h2>How it was made</h2>
<p>Commit {html.escape(commit or "unknown")}; {html.escape(", ".join(f"{k} {v}" for k, v in versions.items()))}.
Seconds: {html.escape(", ".join(f"{k} {v:.1f}" for k, v in results.seconds.items()))}.</p>
<pre>{html.escape(json.dumps(config, indent=2))}</pre>
"""
    return document(name, body)


def _curve(results: Results, pictures: dict[str, bytes]) -> str:
    if results.curve is None or results.segment is None:
        return ""
    curve, segment = results.curve, results.segment
    perplexity = ""
    if results.next_token:
        perplexity = f""" Its test perplexity stays at or below {math.exp(max(curve.test_nll)):.1f} (worse endpoint
{math.exp(max(curve.test_nll[0], curve.test_nll[-1])):.1f}); that of the segment rises to
{math.exp(max(segment.test_nll)):.1f} (paper, Table 3)."""
    return f"""
<h2>The curve between the endpoints, and the straight segment</h2>
<p>On the curve the test error stays at or below {100 * max(curve.test_error):.2f} % (worse endpoint
{100 * max(curve.test_error[0], curve.test_error[-1]):.2f} %); on the segment it rises to
{100 * max(segment.test_error):.2f} %. The curve is {curve.length / segment.length:.2f} times as long.{perplexity}</p>
{figure(pictures["path"], "Error and loss along both paths, BatchNorm recalibrated at every point (paper, Figure 2).")}
{figure(pictures["path-zoomed"], "The curve alone.")}"""


def _fge(pictures: dict[str, bytes]) -> str:
    if "fge-walk" not in pictures:
        return ""
    return f"""
<h2>Fast geometric ensembling</h2>
{figure(pictures["fge-walk"], "The walk by iteration (paper, Figure 5).")}"""


def _table(results: Results) -> str:
    best = {
        field: min(getattr(row.quality, field) for row in results.rows) for field in ("error", "nll", "brier", "ece")
    }

    def cell(value: float, field: str, text: str) -> str:
        return f"<td{' class=best' if value == best[field] else ''}>{text}</td>"

    lines = []
    for row in results.rows:
        quality = row.quality
        lines.append(
            f"<tr><td>{html.escape(row.predictor)}</td><td>{row.members}</td><td>{row.training_epochs}</td>"
            + cell(quality.error, "error", f"{100 * quality.error:.2f}")
            + cell(quality.nll, "nll", f"{quality.nll:.4f}")
            + f"<td>{row.untempered.nll:.4f}</td>"
            + cell(quality.brier, "brier", f"{quality.brier:.4f}")
            + cell(quality.ece, "ece", f"{quality.ece:.4f}")
            + (cell(quality.nll, "nll", f"{quality.perplexity:.2f}") if results.next_token else "")
            + "</tr>"
        )
    heads = ["predictor", "members", "epochs", "error, %", "NLL", "NLL, no temperatures", "Brier", "ECE"]
    if results.next_token:
        heads.append("perplexity")
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(lines)}</table>"


def figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    alt = html.escape(caption, quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"><figcaption>{alt}</figcaption></figure>'


def shown(pictures: Mapping[str, bytes], captions: Mapping[str, str], *names: str) -> str:
    """Those of the names of which there is a picture."""
    return "".join(figure(pictures[name], captions[name]) for name in names if name in pictures)


def section(title: str, body: str) -> str:
    """Nothing without a body."""
    return f"<h2>{title}</h2>\n{body}" if body else ""


def document(title: str, body: str, css: str = "") -> str:
    """A page in one file. title: escaped already."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{CSS}{css}</style></head><body>{body}</body></html>\n'


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Of text, the first column to the left."""
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    return f'<div class="wide"><table><tr>{top}</tr>{"".join(line(cells) for cells in lines)}</table></div>'


def line(cells: Sequence[str]) -> str:
    """Of a table."""
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
