"""The dashboard's panels, drawn from a live Prometheus as Grafana would place them."""

import json
import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tests.deploy.live import Prometheus, of_panel
from tests.deploy.render import DEPLOY

UNITS = {
    "reqps": "requests/s", "rowsps": "rows/s", "s": "s", "percentunit": "", "bytes": "MB", "none": "", "short": "",
}  # fmt: skip
COLUMNS, ROW_HEIGHT = 24, 0.32  # of Grafana's grid; inches


def draw(prometheus: Prometheus, start: float, end: float, path: Path) -> int:
    """start, end: Unix time. Returns how many lines there are to see."""
    panels = json.loads((DEPLOY / "dashboard.json").read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(18, rows * ROW_HEIGHT), dpi=80)
    lines = 0
    for panel in panels:
        at = panel["gridPos"]
        left, width = at["x"] / COLUMNS, at["w"] / COLUMNS
        bottom, height = 1 - (at["y"] + at["h"]) / rows, at["h"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.008, bottom + height / 2, panel["title"], va="center", fontsize=12, weight="bold")
            continue
        inner = (left + 0.035, bottom + 0.16 * height, width - 0.045, 0.66 * height)
        axes = figure.add_axes(inner)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        unit = panel["fieldConfig"]["defaults"].get("unit", "none")
        if panel["type"] == "stat":
            _number(axes, prometheus, panel["targets"][0]["expr"], unit)
            continue
        for target in panel["targets"]:
            parameters = {"query": of_panel(target["expr"]), "start": start, "end": end, "step": 1}
            for series in prometheus.ask("query_range", **parameters)["result"]:
                labels = series["metric"]
                label = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), target.get("legendFormat") or "")  # noqa: B023
                values = [float(value) / (1e6 if unit == "bytes" else 1) for _, value in series["values"]]
                # What never happened is drawn, and left out of the legend.
                shown = f"_{label}" if not any(values) else label
                axes.plot([float(at) - start for at, _ in series["values"]], values, linewidth=1.2, label=shown)
                lines += 1
        _finish(axes, unit, end - start)
    figure.savefig(path)
    plt.close(figure)
    return lines


def _number(axes: Axes, prometheus: Prometheus, expression: str, unit: str) -> None:
    found = prometheus.series(expression)
    value = float(found[0]["value"][1]) if found else math.nan
    if unit == "percentunit":
        text = f"{value:.1%}"
    elif value > 1e4:
        text = f"{value / 86400:.1f} days"
    else:
        text = f"{value:,.3g} {UNITS.get(unit, '')}"
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=15)
    axes.set_axis_off()


def _finish(axes: Axes, unit: str, seconds: float) -> None:
    axes.tick_params(labelsize=7)
    axes.set_xlim(0, seconds)
    axes.grid(alpha=0.25)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(UNITS.get(unit, unit), fontsize=7)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, fontsize=6, loc="best", framealpha=0.6, ncols=1 + len(handles) // 5)
    if not axes.lines:
        axes.text(0.5, 0.5, "no series", transform=axes.transAxes, ha="center", fontsize=8, color="grey")
