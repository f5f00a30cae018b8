"""What the command finds without the weights, in this process and through a live server, on a small run."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.trainer.attack.test_harness import SHORT
from tests.trainer.test_pipeline import QUIET
from trainer.attack import harness
from trainer.attack.harness import ONE, Outcome
from trainer.attack.results import CLEAN, Line, Options
from trainer.errors import InvalidConfig, UserError
from trainer.pipeline import Outcome as Run

ASKING = dataclasses.replace(SHORT, attacks=("PGD",), rows=40, queries=(4, 40), repeat=(1, 5))


@pytest.fixture(scope="module")
def run(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: other tests compare the run's own folder."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    shutil.copytree(small_run.report.parent, folder)
    return folder


@pytest.fixture(scope="module")
def attacked(run: Path) -> Outcome:
    return harness.attack(run / "curve", ASKING, QUIET)


def line(outcome: Outcome, attack: str, predictor: str = "curve") -> Line:
    found = outcome.found.line(attack, predictor)
    assert found is not None, attack
    return found


def test_every_way_of_asking_is_a_line_at_each_budget_that_allows_a_point(attacked: Outcome) -> None:
    asked = [found for found in attacked.found.lines if found.kind == "black-box"]
    ensemble = [
        "Square, random, 4 queries", "Square, random, 40 queries",
        "Square, random, each point 5 times, 40 queries",
        "Square, curve, 4 queries", "Square, curve, 40 queries",
        "Square, mean, 4 queries", "Square, mean, 40 queries",
    ]  # fmt: skip
    once = [name for name in ensemble if "curve" not in name and "times" not in name]
    assert [found.attack for found in asked if found.predictor == "curve"] == ensemble
    for other in (ONE, "fge"):
        assert [found.attack for found in asked if found.predictor == other] == once


def test_who_draws_is_asked_to_the_end_and_who_does_not_until_a_row_is_fooled(attacked: Outcome) -> None:
    for attack, most in (("Square, random, 40 queries", 1600), ("Square, curve, 40 queries", 1600),
                         ("Square, random, each point 5 times, 40 queries", 1600)):  # fmt: skip
        assert line(attacked, attack).settings == {"queries a row": 40, "in all": most, "answers": "full"}
    assert line(attacked, "Square, mean, 40 queries").settings["in all"] < 1600
    alone = [line(attacked, f"Square, {policy}, 40 queries", ONE) for policy in ("random", "mean")]
    assert alone[0].accuracy == alone[1].accuracy  # one network answers by every policy as ever


def test_no_attack_raises_accuracy_and_networks_of_a_curve_have_an_expectation_alone(attacked: Outcome) -> None:
    clean = line(attacked, CLEAN).accuracy
    assert line(attacked, "Square, mean, 40 queries").accuracy.mean.value < clean.mean.value  # type: ignore[union-attr]
    assert line(attacked, "from a public endpoint").accuracy.expected.value < clean.expected.value
    curve = line(attacked, "Square, curve, 40 queries").accuracy
    assert curve.expected.value <= clean.expected.value
    assert (curve.mean, curve.all_members) == (None, None)
    assert [check.detail for check in attacked.found.checks if not check.passed] == []


def test_a_second_call_computes_nothing_and_other_answers_what_they_change(attacked: Outcome, run: Path) -> None:
    assert harness.attack(run / "curve", ASKING, QUIET).computed == 0
    labels = harness.attack(run / "curve", dataclasses.replace(ASKING, answers="labels", queries=(4,)), QUIET)
    assert labels.computed == 6  # random, curve, mean; of fge random and mean; the network
    assert line(labels, "Square, random, 4 queries").settings["answers"] == "labels"


def test_a_live_server_is_attacked_as_well_and_told_from_one_of_another_ensemble(attacked: Outcome, run: Path) -> None:
    with ServerProcess(run / "curve", "--policy", "random", "--round-probs", "3") as server:
        live = dataclasses.replace(ASKING, through=server.grpc)
        found = harness.attack(run / "curve", live, QUIET)
        name = f"Square, random, each point 5 times, through {server.grpc}, 40 queries"
        assert line(found, name).settings == {"queries a row": 40, "in all": 1600, "answers": "rounded:3"}
        assert found.computed == 0
        assert all("through" not in entry for entry in found.summary)
        with pytest.raises(UserError, match="serves another ensemble than fge: an answer is"):
            harness.attack(run / "fge", live, QUIET)


def test_options_that_no_server_or_budget_has_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="--queries has 0; expected 1 or more"):
        Options(queries=(0, 100))
    with pytest.raises(InvalidConfig, match="--answers is 'most'; expected full, labels, or rounded:N"):
        Options(answers="most")
