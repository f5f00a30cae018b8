"""The study of a small run: what it writes, that it is what is served, that nothing is done twice."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from protos.validate import validate
from tests.trainer.test_pipeline import QUIET
from trainer.__main__ import main
from trainer.errors import InvalidConfig
from trainer.pipeline import Outcome as Run
from trainer.shift import corruptions, figures
from trainer.shift.results import METRICS, Options
from trainer.shift.study import Outcome, study

DRAW, DRAW_CORRUPTIONS = figures.draw, figures.corruptions
OPTIONS = Options(rows=60)
TWO = tuple(kind for kind in corruptions.KINDS if kind.name in ("gaussian noise", "translation"))


@pytest.fixture(scope="module")
def run(run: Path) -> Iterator[Path]:
    """Two kinds are enough, and one look at the pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corruptions, "KINDS", TWO)
        patch.setattr(figures, "draw", lambda found: {})
        patch.setattr(figures, "corruptions", lambda *given: b"")
        yield run


@pytest.fixture(scope="module")
def studied(run: Path) -> Outcome:
    return study(run, OPTIONS, QUIET)


def test_every_predictor_of_the_run_is_measured_at_every_severity(studied: Outcome) -> None:
    found = studied.found
    assert [entry.predictor for entry in found.predictors] == ["single network", "endpoint pair", "FGE", "curve"]
    assert found.rows == {"test": 60}
    for entry in found.predictors:
        assert {name: len(measured) for name, measured in entry.corrupted.items()} == {
            "gaussian noise": 5,
            "translation": 5,
        }
        by_severity = entry.by_severity(METRICS["nll"].of)
        assert len(by_severity) == 6
        assert by_severity[5] > by_severity[0]
        expected = [entry.corrupted[kind.name][2].quality.nll for kind in TWO]
        assert by_severity[3] == pytest.approx(sum(expected) / 2)
        assert entry.corrupted_mean(METRICS["nll"].of) == pytest.approx(sum(by_severity[1:]) / 5)


def test_clean_rows_give_the_runs_own_numbers_and_thresholds_are_the_manifests(
    run: Path, small_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corruptions, "KINDS", ())
    found = study(run, Options(rows=0, level=0.95), QUIET).found
    by_name = {entry.predictor: entry for entry in found.predictors}
    for row in small_run.results.rows:
        entry = by_name[row.predictor]
        assert (entry.members, entry.training_epochs) == (row.members, row.training_epochs)
        mine, theirs = entry.clean.quality, row.quality
        assert dataclasses.astuple(mine) == pytest.approx(dataclasses.astuple(theirs), abs=1e-4)
    for name, method in (("FGE", "fge"), ("curve", "curve")):
        (stored,) = (c for c in validate(run / method).manifest.conformal if c.policy == "mean")
        (threshold,) = (entry.threshold for entry in stored.thresholds if entry.level == 0.95)
        assert by_name[name].threshold == pytest.approx(threshold, abs=1e-6)


def test_a_second_study_runs_no_network_and_finds_the_same(studied: Outcome, run: Path) -> None:
    assert studied.computed > 0
    again = study(run, OPTIONS, QUIET)
    assert again.computed == 0
    assert again.found == studied.found


def test_a_study_that_was_killed_goes_on(
    studied: Outcome, run: Path, tmp_path: Path, killed: Callable[[int, Callable[[], object]], None]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation", "shift"))
    killed(13, lambda: study(copy, OPTIONS, QUIET))
    rest = study(copy, OPTIONS, QUIET)
    assert 0 < rest.computed < studied.computed
    assert rest.found == studied.found


def test_rows_of_other_data_sets_are_told_from_the_test_rows(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corruptions, "KINDS", ())
    (tmp_path / "other.py").write_text(
        "import numpy, torch\n"
        f"rows = numpy.load({str(run / 'test.npz')!r})['inputs']\n"
        "def same():\n"
        "    return {'train_inputs': rows, 'train_targets': torch.arange(len(rows)) % 2}\n"
        "def inverse():\n"
        "    return {'train_inputs': 255 - rows[:50], 'train_targets': torch.arange(50) % 2}\n"
    )
    same, inverse = (f"{tmp_path}/other.py:{name}" for name in ("same", "inverse"))
    outcome = study(run, Options(ood=(same, inverse), rows=0), QUIET)
    assert outcome.found.rows[inverse] == 50
    for entry in outcome.found.predictors:
        assert {round(found.auroc, 3) for found in entry.foreign[same].values()} == {0.5}
        assert entry.foreign[inverse]["entropy"].auroc > 0.6
        assert ("mutual information" in entry.foreign[inverse]) == (entry.members > 1)
    assert f"Rows of {inverse}" in outcome.report.read_text()


def test_the_report_is_one_file_with_its_pictures_inside(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", DRAW)
    monkeypatch.setattr(figures, "corruptions", DRAW_CORRUPTIONS)
    outcome = study(run, OPTIONS, QUIET)
    page = outcome.report.read_text()
    pictures = {path.stem for path in (run / "shift" / "figures").iterdir()}
    assert pictures == {"severity", "kinds", "detection", "risk-coverage", "corruptions"}
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{5000,}"', page)) == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "share of a side" in page
    assert "saturation" not in page
    numbers = json.loads(outcome.numbers.read_text())
    assert len(numbers["predictors"][0]["risk"]["corrupted"]) == 100


def test_rows_that_are_no_pictures_are_measured_clean(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.shift.study.applicable", lambda rows: ([], {"corruptions": "the rows are features"}))
    outcome = study(run, OPTIONS, QUIET)
    assert outcome.found.predictors[0].corrupted == {}
    assert outcome.found.absent == {"corruptions": "the rows are features"}
    assert "corruptions: the rows are features" in outcome.report.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "1"], "--rows is 1; expected 2 or more, or 0 for all"),
        (["--level", "0.33"], "--level is 0.33; expected one of 0.5, 0.55"),
        (["--ood", "digits", "digits"], "--ood names a source twice"),
        ([], "'nothing' holds no finished run"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shift", "nothing", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_language_model_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.Splits.next_token", True)
    with pytest.raises(InvalidConfig, match="predicts next tokens"):
        study(run, OPTIONS, QUIET)


@pytest.mark.slow
def test_the_command_prints_the_tables_of_every_kind(
    small_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_run.report.parent, tmp_path / "run")
    torch.set_num_threads(1)
    assert main(["shift", str(tmp_path / "run"), "--rows", "50", "--ood", "digits"]) == 0
    output = capsys.readouterr()
    for text in ("endpoint pair", "no saturation: the pictures are grey", "Rows of digits", "shift.html", "shifted"):
        assert text in output.out
    assert "evaluated='zoom blur' networks=11" in output.err
