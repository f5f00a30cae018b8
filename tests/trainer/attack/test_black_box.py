"""What is found without the weights, in this process and through a live server, on a small run."""

import dataclasses
from collections.abc import Callable

import pytest

from tests.server_process import ServerProcess
from tests.trainer.attack.test_harness import SHORT
from tests.trainer.test_pipeline import QUIET
from trainer import finished_run
from trainer.attack import ball, black_box, target
from trainer.attack.attacking import Attacking, Victim
from trainer.attack.harness import ONE
from trainer.attack.results import Line, Options
from trainer.attack.scores import judge
from trainer.attack.store import Store
from trainer.errors import InvalidConfig, UserError
from trainer.pipeline import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")

ASKING = dataclasses.replace(SHORT, queries=(4, 40), repeat=(1, 5))
Attack = Callable[..., tuple[Attacking, list[Victim], list[Line]]]


@pytest.fixture(scope="module")
def attack(small_run: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Attack:
    """Of forty digits; the store is one and the same in all calls."""
    run, store = finished_run.load(small_run.report.parent), tmp_path_factory.mktemp("store")
    split = run.splits.test.spread(40)
    curve, fge = target.load(run, "curve"), target.load(run, "fge")
    victims = [
        Victim("curve", curve, "curve", 1, "digest of curve"),
        Victim(ONE, curve.member(0), "curve", 1, "digest of one"),
        Victim("fge", fge, "fge", 1, "digest of fge"),
    ]

    def call(options: Options, order: slice = slice(None)) -> tuple[Attacking, list[Victim], list[Line]]:
        around = ball.around(split.inputs, "linf", options.epsilon)
        rows = (split.inputs, ball.floats(split.inputs), split.labels)
        this = Attacking(run, options, around, *rows, Store(store), QUIET)
        return this, victims, list(black_box.attack(this, victims[order]))

    return call


def test_every_way_of_asking_is_a_line_at_each_budget_that_allows_a_point(attack: Attack) -> None:
    _, _, lines = attack(ASKING)
    ensemble = [
        "Square, random, 4 queries", "Square, random, 40 queries",
        "Square ×5, random, 40 queries",
        "Square, curve, 4 queries", "Square, curve, 40 queries",
        "Square, mean, 4 queries", "Square, mean, 40 queries",
    ]  # fmt: skip
    once = [name for name in ensemble if "curve" not in name and "×" not in name]
    for predictor, names in (("curve", ensemble), (ONE, once), ("fge", once)):
        own = [line for line in lines if line.predictor == predictor]
        assert [line.attack for line in own if line.kind == "transfer"] == ["from a public endpoint"]
        assert [line.attack for line in own if line.kind == "black-box"] == names


def test_who_draws_is_asked_to_the_end_and_who_does_not_until_a_row_is_fooled(attack: Attack) -> None:
    _, _, lines = attack(ASKING)
    found = {(line.predictor, line.attack): line for line in lines}
    for way in ("Square, random", "Square ×5, random", "Square, curve"):
        settings = found["curve", f"{way}, 40 queries"].settings
        assert settings == {"queries a row": 40, "in all": 1600, "answers": "full"}
    assert found["curve", "Square, mean, 40 queries"].settings["in all"] < 1600
    by_random, by_mean = (found[ONE, f"Square, {policy}, 40 queries"].accuracy for policy in ("random", "mean"))
    assert by_random == by_mean  # one network answers by every policy as ever


def test_accuracy_falls_and_networks_of_a_curve_have_an_expectation_alone(attack: Attack) -> None:
    this, victims, lines = attack(ASKING)
    clean = judge(victims[0].target, this.clean, this.targets).accuracy()
    found = {line.attack: line.accuracy for line in lines if line.predictor == "curve"}
    by_mean = found["Square, mean, 40 queries"].mean
    assert by_mean is not None
    assert clean.mean is not None
    assert by_mean.value < clean.mean.value
    assert found["from a public endpoint"].expected.value < clean.expected.value
    curve = found["Square, curve, 40 queries"]
    assert curve.expected.value <= clean.expected.value
    assert (curve.mean, curve.all_members) == (None, None)


def test_a_second_call_computes_nothing_and_other_answers_what_they_change(attack: Attack) -> None:
    attack(ASKING)
    this, _, _ = attack(ASKING)
    assert this.store.computed == 0
    this, _, lines = attack(dataclasses.replace(ASKING, answers=("labels",), queries=(4,)))
    assert this.store.computed == 6  # random, curve, mean; of fge random and mean; the network
    assert {line.settings["answers"] for line in lines if line.kind == "black-box"} == {"labels"}


def test_a_live_server_is_attacked_as_well_and_told_from_one_of_another_ensemble(
    attack: Attack, small_run: Outcome
) -> None:
    with ServerProcess(small_run.ensembles["curve"], "--policy", "random", "--round-probs", "3") as server:
        live = dataclasses.replace(ASKING, through=server.grpc)
        _, _, lines = attack(live)
        found = {line.attack: line.settings for line in lines if line.kind == "live"}
        with pytest.raises(UserError, match="serves another ensemble than fge: an answer is"):
            attack(live, slice(2, 3))
    assert found["Square ×5, random, rounded:3, live, 40 queries"] == {
        "queries a row": 40,
        "in all": 1600,
        "answers": "rounded:3",
    }
    assert len(found) == 3


def test_options_that_no_server_or_budget_has_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="--queries has 0; expected 1 or more"):
        Options(queries=(0, 100))
    with pytest.raises(InvalidConfig, match="--answers is 'most'; expected full, labels, or rounded:N"):
        Options(answers=("most",))
