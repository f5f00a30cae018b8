"""Every alert fires where it should, clears, and has a paragraph that says what to do."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.render import DEPLOY, rendered

TESTS = [Path(__file__).with_name(name) for name in ("alerts.yaml", "drift.yaml")]
OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text()


def rules() -> list[dict[str, Any]]:
    (found,) = (each for each in rendered("base") if each["kind"] == "PrometheusRule")
    groups: list[dict[str, Any]] = found["spec"]["groups"]
    return groups


ALERTS = [rule for group in rules() for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_how_bad_it_is_and_has_a_paragraph(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
    (paragraph,) = re.findall(rf"^### {alert['alert']}\n(.*?)^##", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert "*Look at*" in paragraph
    assert "*Do*" in paragraph or "*do*" in paragraph


def test_no_paragraph_is_about_an_alert_that_is_gone() -> None:
    assert re.findall(r"^### (Thalweg\w+)$", OPERATIONS, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_every_alert_is_tested_where_it_fires_and_where_it_does_not() -> None:
    tests = [test for path in TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for fires in (True, False):
        tested = {case["alertname"] for case in cases if bool(case.get("exp_alerts")) == fires}
        assert tested == {alert["alert"] for alert in ALERTS}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
@pytest.mark.parametrize(
    "tests", [TESTS[0], pytest.param(TESTS[1], marks=pytest.mark.slow)], ids=lambda path: path.stem
)
def test_promtool_sees_alerts_fire_and_clear_as_the_tests_say(tests: Path, tmp_path: Path) -> None:
    groups = rules()
    for rule in (rule for group in groups for rule in group["rules"]):
        rule.get("annotations", {}).pop("runbook", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    shutil.copy(tests, tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", tests.name]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
