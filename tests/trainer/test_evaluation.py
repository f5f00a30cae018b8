"""The second pipeline on a small run: what it writes, that its numbers are the run's, that nothing is done twice."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.test_pipeline import QUIET
from trainer import evaluation, finished_run
from trainer.errors import InvalidConfig
from trainer.evaluation import Outcome
from trainer.evaluation_results import Options
from trainer.pipeline import Outcome as Run

OPTIONS = Options(points=9, members=(2, 5), plane=4, plane_rows=50)


@pytest.fixture(scope="module")
def evaluated(run: Path) -> Outcome:
    return evaluation.evaluate(run, OPTIONS, QUIET)


def test_the_stored_ensembles_give_the_runs_own_numbers(evaluated: Outcome, small_run: Run) -> None:
    found, expected = evaluated.evaluation, small_run.results
    assert found.curve is not None
    assert found.segment is not None
    assert expected.curve is not None
    assert expected.segment is not None
    for mine, theirs in ((found.curve, expected.curve), (found.segment, expected.segment)):
        assert mine.t == theirs.t
        for field in ("train_error", "train_nll", "test_error", "test_nll", "test_nll_tempered"):
            assert getattr(mine, field) == pytest.approx(getattr(theirs, field), rel=1e-4, abs=1e-6), field
    scores = {score.predictor: score for score in found.scores}
    for row in expected.rows:
        score = scores["curve, 5 points" if row.predictor == "curve" else row.predictor]
        assert score.training_epochs == row.training_epochs
        assert dataclasses.astuple(score.quality) == pytest.approx(dataclasses.astuple(row.quality), abs=1e-4)
    assert found.curve.pair_error[-1] == pytest.approx(scores["endpoint pair"].untempered.error)
    assert scores["curve, 2 points"].quality == scores["endpoint pair"].quality


def test_the_loss_has_the_l2_term_and_lengths_are_in_weight_space(evaluated: Outcome, run: Path) -> None:
    found, curve = evaluated.evaluation, finished_run.load(run).curve()
    assert found.curve is not None
    assert found.segment is not None
    assert found.walk is not None
    middle = curve.point(0.5).double()
    assert found.curve.train_loss[4] - found.curve.train_nll[4] == pytest.approx(0.5 * 5e-4 * float(middle @ middle))
    distance = float(torch.dist(curve.control_points[0], curve.control_points[-1]))
    assert found.segment.length == pytest.approx(distance, rel=1e-5)
    assert found.walk.walked[-1] == pytest.approx(distance, rel=1e-5)
    assert found.curve.length > found.segment.length


def test_planes_go_through_the_endpoints_and_hold_the_curve(evaluated: Outcome) -> None:
    snapshot, bend = evaluated.evaluation.surfaces
    assert snapshot.name == "the endpoints and an FGE snapshot"
    assert (bend.train_rows, bend.test_rows) == (50, 50)
    assert [mark.label for mark in bend.marks] == ["network 1", "network 2", "bend"]
    assert np.shape(bend.train_loss) == np.shape(bend.test_error) == (4, 4)
    assert bend.curve[0] == pytest.approx((0.0, 0.0), abs=1e-6)
    assert bend.curve[-1] == pytest.approx((bend.marks[1].x, 0.0), abs=1e-4)
    # A quadratic Bezier curve comes half as high as its bend.
    assert max(y for _, y in bend.curve) == pytest.approx(bend.marks[2].y / 2, rel=1e-3)
    assert not snapshot.curve


def test_a_second_evaluation_runs_no_network_and_finds_the_same(evaluated: Outcome, run: Path) -> None:
    assert evaluated.computed > 0
    numbers = evaluated.numbers.read_bytes()
    again = evaluation.evaluate(run, OPTIONS, QUIET)
    assert again.computed == 0
    assert again.numbers.read_bytes() == numbers


def test_an_evaluation_that_was_killed_goes_on(
    evaluated: Outcome, run: Path, tmp_path: Path, killed: Callable[[int, Callable[[], object]], None]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation"))
    killed(10, lambda: evaluation.evaluate(copy, OPTIONS, QUIET))
    rest = evaluation.evaluate(copy, OPTIONS, QUIET)
    assert rest.computed == evaluated.computed - 10 * 3  # ten points of the curve, on three splits
    assert rest.numbers.read_bytes() == evaluated.numbers.read_bytes()


def test_rows_of_another_data_set_are_told_from_the_test_rows(evaluated: Outcome, run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import numpy, torch\n"
        f"rows = numpy.load({str(run / 'test.npz')!r})['inputs'][::-1].copy()\n"
        "def same():\n"
        "    return {'train_inputs': rows, 'train_targets': torch.arange(len(rows)) % 2}\n"
        "def mixed():\n"  # each picture is two digits
        "    pairs = rows[:60] // 2 + rows[60:120] // 2\n"
        "    return {'train_inputs': pairs, 'train_targets': torch.arange(60) % 2}\n"
        "def large():\n"
        "    return {'train_inputs': torch.zeros(4, 1, 9, 9), 'train_targets': torch.arange(4) % 2}\n"
    )
    options = dataclasses.replace(OPTIONS, plane=0)

    def evaluate(name: str) -> Outcome:
        return evaluation.evaluate(run, dataclasses.replace(options, ood=f"{tmp_path}/other.py:{name}"), QUIET)

    same, mixed = evaluate("same"), evaluate("mixed")
    assert mixed.evaluation.rows["ood"] == 60
    assert 0 < mixed.computed < 40  # the members, on these rows alone
    for own, foreign in zip(same.evaluation.scores, mixed.evaluation.scores, strict=True):
        assert own.detections["entropy"].auroc == pytest.approx(0.5, abs=1e-3)
        assert foreign.detections["entropy"].auroc > 0.6
        assert "energy" in foreign.detections
        assert ("mutual information" in foreign.detections) == (foreign.members > 1)
    assert "AUROC" in mixed.report.read_text()
    with pytest.raises(InvalidConfig, match=r"has rows of \[1, 9, 9\], torch.float32; the run's are \[1, 8, 8\]"):
        evaluate("large")


def test_the_report_is_one_file_with_its_pictures_inside(evaluated: Outcome, run: Path) -> None:
    page = evaluation.evaluate(run, OPTIONS, QUIET).report.read_text()
    pictures = {path.stem for path in (run / "evaluation" / "figures").iterdir()}
    assert pictures == {
        "paths", "two-networks", "curve-ensembles", "planes", "error-over-epochs", "calibration", "disagreement",
    }  # fmt: skip
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{5000,}"', page)) == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "trivial curve: the network is no sequence of" in page
    numbers = json.loads(evaluated.numbers.read_text())
    assert len(numbers["curve"]["t"]) == 9
    assert {score["predictor"] for score in numbers["scores"]} >= {"single network", "FGE", "curve, 5 points"}


def test_what_holds_no_finished_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="holds no finished run"):
        evaluation.evaluate(tmp_path, OPTIONS, QUIET)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    results = json.loads((copy / "results.json").read_text())
    results["config"]["data"]["split_seed"] = 1
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(InvalidConfig, match=r"are not those that .* was trained on"):
        evaluation.evaluate(copy, OPTIONS, QUIET)
    results["config"]["colour"] = "blue"
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(InvalidConfig, match="not this version's"):
        evaluation.evaluate(copy, OPTIONS, QUIET)
