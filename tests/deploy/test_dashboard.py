"""The dashboard is what its source says, Grafana's own types read it, and each panel asks for what the server has."""

import itertools
import json
import re
import runpy
from typing import Any

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy import promql
from tests.deploy.render import DEPLOY
from tests.deploy.test_alerts import rules

FILE = DEPLOY / "dashboard.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RECORDED: promql.Series = {
    rule["record"]: {label: set() for label in ("model", "version", "class")}
    for group in rules()
    for rule in group["rules"]
    if "record" in rule
}
# What is told by another panel, or only says what the server is made of.
NOT_SHOWN = {"ensemble_build_info", "ensemble_engine_info"}


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def test_the_file_is_what_its_source_makes() -> None:
    assert runpy.run_path(str(DEPLOY / "dashboard.py"))["build"]() == FILE.read_text()


def test_grafanas_types_read_it() -> None:
    dashboard = Dashboard.from_json(DASHBOARD)
    assert dashboard.panels is not None
    assert len(dashboard.panels) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_asks_for_what_the_server_has_and_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert expressions(panel)
    assert [problem for expression in expressions(panel) for problem in promql.problems(expression, RECORDED)] == []
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${source}"
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_variables_are_those_that_expressions_use() -> None:
    used = {name for panel in PANELS for text in expressions(panel) for name in re.findall(r"\$([a-z]+)", text)}
    assert used | {"source"} == {variable["name"] for variable in DASHBOARD["templating"]["list"]}


def test_every_metric_of_the_server_is_on_it() -> None:
    asked = " ".join(expression for panel in PANELS for expression in expressions(panel))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in promql.served() if name.startswith("ensemble_")}
    assert {name for name in families if name not in asked} == NOT_SHOWN


def test_no_two_panels_overlap_and_each_has_its_number() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
