"""The paper's numbers, as its tables and text give them, follow from the recipes."""

import pytest

from trainer.recipes import RECIPES
from trainer.schedule import triangular

TRAINING_ROWS = 45_000


@pytest.mark.parametrize(
    ("name", "budget", "members"),
    [("paper-vgg16", 200, 22), ("paper-preresnet110", 147, 6), ("paper-wrn28-10", 200, 12)],  # appendix A.5
)
def test_fge_takes_the_papers_budget_and_gathers_its_members(name: str, budget: int, members: int) -> None:
    config = RECIPES[name](0)
    fge = config.fge
    assert max(fge.start_epochs) + fge.epochs * len(fge.start_epochs) == budget
    iterations = -(-TRAINING_ROWS // config.sgd.batch_size)
    c = fge.cycle_epochs * iterations
    snapshots = [i for i in range(1, fge.epochs * iterations + 1) if i % c == c // 2]
    assert len(snapshots) * len(fge.start_epochs) == members
    assert {triangular(i, c, fge.alpha_1, fge.alpha_2) for i in snapshots} == {5e-4}


def test_rates_are_section_6s() -> None:
    rates = {name: (RECIPES[name](0).endpoint.learning_rate, RECIPES[name](0).fge.alpha_1) for name in RECIPES}
    assert rates["paper-vgg16"] == (0.05, 1e-2)
    assert rates["paper-preresnet110"] == rates["paper-wrn28-10"] == (0.1, 5e-2)


def test_on_digits_fge_and_sse_have_about_equal_budgets() -> None:
    config = RECIPES["digits-paper"](0)
    fge = max(config.fge.start_epochs) + config.fge.epochs
    assert abs(fge - config.sse.cycles * config.sse.cycle_epochs) <= 1


@pytest.mark.parametrize("name", ["digits-robust", "cifar100-robust"])
def test_an_adversary_in_training_can_reach_all_of_its_ball(name: str) -> None:
    adversary = RECIPES[name](0).adversary
    assert adversary.norm == "linf"
    assert adversary.steps * adversary.step_size >= adversary.epsilon + adversary.step_size
