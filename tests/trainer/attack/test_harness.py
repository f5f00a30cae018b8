"""The whole command on a small run: what it writes, that figures agree with each other, that nothing is done twice."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from protos.validate import validate
from tests.trainer.test_pipeline import QUIET
from trainer import finished_run
from trainer.__main__ import main
from trainer.attack import harness, target
from trainer.attack.harness import ONE, Outcome
from trainer.attack.results import CLEAN, WHOLE, WORST, Options
from trainer.errors import InvalidConfig

SHORT = Options(
    epsilon=40.0, rows=30, pgd_steps=4, pgd_restarts=1, arc_steps=2, arc_classes=3, apgd_steps=6, apgd_targets=2,
    radius_steps=6, transfer_steps=4, queries=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def attacked(run: Path) -> Outcome:
    return harness.attack(run / "fge", SHORT, QUIET)


def test_every_attack_is_measured_on_the_ensemble_and_one_network(attacked: Outcome, run: Path) -> None:
    found = attacked.found
    assert [(each.name, each.members, each.training_epochs) for each in found.predictors] == [
        ("fge", 3, 9), (ONE, 1, 6),
    ]  # fmt: skip
    attacks = [CLEAN, "PGD", "ARC", "APGD-CE", "APGD-T", WORST, WHOLE]
    assert [line.attack for line in found.lines] == 2 * attacks + 2 * ["from a public endpoint"]
    clean, worst = (found.line(attack, "fge") for attack in (CLEAN, WORST))
    assert clean
    assert worst
    test = finished_run.load(run).splits.test.spread(30)
    with torch.no_grad():
        right = target.load(finished_run.load(run), "fge").mean(test.inputs.float()).argmax(1) == test.labels
    assert clean.accuracy.mean
    assert clean.accuracy.mean.value == pytest.approx(float(right.double().mean()))
    for line in found.lines[1:6]:
        assert worst.accuracy.expected.value <= line.accuracy.expected.value <= clean.accuracy.expected.value
    assert worst.accuracy.expected.value < 0.3 < 0.6 < clean.accuracy.expected.value
    whole = found.line(WHOLE, "fge")
    assert whole
    assert worst.accuracy.expected.value <= whole.accuracy.expected.value < 0.4


def test_accuracy_falls_with_the_radius_and_reaches_0_and_all_checks_pass(attacked: Outcome) -> None:
    found = attacked.found
    assert [radius.epsilon for radius in found.radii[:4]] == [0.0, 10.0, 20.0, 40.0]
    assert found.radii[-1].accuracy.expected.value == 0.0
    assert [check.detail for check in found.checks if not check.passed] == []
    assert len(found.checks) >= 6


@pytest.fixture(scope="module")
def again(attacked: Outcome, run: Path) -> Iterator[tuple[Outcome, bytes, bytes]]:
    """A second call, on a directory that was signed since; and what numbers and manifest were before it."""
    (run / "fge" / "manifest.sig").write_bytes(b"signature")
    numbers, manifest = attacked.numbers.read_bytes(), (run / "fge" / "manifest.json").read_bytes()
    yield harness.attack(run / "fge", SHORT, QUIET), numbers, manifest
    (run / "fge" / "manifest.sig").unlink()


def test_a_second_call_computes_nothing_and_writes_the_same(
    attacked: Outcome, again: tuple[Outcome, bytes, bytes]
) -> None:
    second, numbers, _ = again
    assert attacked.computed > 8
    assert second.computed == 0
    assert second.numbers.read_bytes() == numbers


def test_a_signed_manifest_is_left_alone_and_told(again: tuple[Outcome, bytes, bytes], run: Path) -> None:
    second, _, manifest = again
    assert "left alone: it is signed" in second.summary
    assert (run / "fge" / "manifest.json").read_bytes() == manifest


def test_the_manifest_gets_a_summary_that_a_reader_accepts(attacked: Outcome, run: Path) -> None:
    manifest = validate(run / "fge").manifest
    assert attacked.summary == "has a summary, 3 lines"
    assert [(entry.attack, entry.norm, entry.epsilon, entry.rows) for entry in manifest.robustness] == [
        (CLEAN, "linf", 0.0, 30), (WORST, "linf", 40.0, 30), ("from a public endpoint", "linf", 40.0, 30),
    ]  # fmt: skip
    worst = attacked.found.line(WORST, "fge")
    assert worst
    assert manifest.robustness[1].expected_accuracy == worst.accuracy.expected.value


def test_the_report_is_one_file_and_marks_what_failed(attacked: Outcome) -> None:
    page = attacked.report.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("<img") == 4
    assert "Clopper–Pearson" in page
    assert "FAILED" not in page
    found = attacked.found
    failed = dataclasses.replace(found, checks=[dataclasses.replace(found.checks[0], passed=False)])
    marked = harness.report.page(failed, {})
    assert "1 of 1 checks failed" in marked
    assert "class=failed" in marked
    assert json.loads(attacked.numbers.read_text())["options"]["epsilon"] == 40.0


def test_the_command_prints_the_table_and_computes_only_what_another_budget_changes(
    attacked: Outcome, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = list((attacked.report.parent / "examples").iterdir())
    arguments = ["attack", str(run / "fge")]
    for name in ("epsilon", "rows", "pgd_steps", "pgd_restarts", "arc_steps", "arc_classes", "apgd_steps",
                 "apgd_targets", "radius_steps", "transfer_steps"):  # fmt: skip
        arguments += [f"--{name.replace('_', '-')}", str(3 if name == "arc_steps" else getattr(SHORT, name))]
    assert main([*arguments, "--queries"]) == 0
    output = capsys.readouterr().out
    for text in ("fge,", "members", "network", WORST, "checks   10 of 10 passed", "attack.html", "L∞ 40"):
        assert text in output
    assert len(list((attacked.report.parent / "examples").iterdir())) == len(stored) + 2  # ARC, on two predictors


def test_what_is_no_ensemble_of_a_finished_run_is_told(run: Path, tiny_directory: Path) -> None:
    with pytest.raises(InvalidConfig, match="does not lie in the folder of a finished run"):
        harness.attack(tiny_directory, SHORT, QUIET)
    with pytest.raises(InvalidConfig, match="is none of the run's ensembles; they are fge, curve"):
        harness.attack(run / "evaluation", SHORT, QUIET)
    with pytest.raises(InvalidConfig, match="--against has 'sse'; the run has fge, curve"):
        harness.attack(run / "fge", dataclasses.replace(SHORT, against=("sse",)), QUIET)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": -1.0}, "--epsilon is -1.0; expected more than 0"),
        ({"rows": 0}, "--rows is 0; expected 1 or more"),
        ({"arc_classes": 1}, "--arc-classes is 1; expected 2 or more"),
        ({"norm": "l1"}, "--norm is 'l1'; expected linf or l2"),
        ({"attacks": ("FGSM",)}, "--attacks has 'FGSM'; expected some of PGD, ARC"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        dataclasses.replace(SHORT, **wrong)  # type: ignore[arg-type]
