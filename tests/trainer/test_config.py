import json

import pytest

from trainer.config import Config, completed, from_dict, override
from trainer.errors import InvalidConfig
from trainer.recipes import RECIPES


def test_fields_are_set_by_name_and_keep_their_types() -> None:
    config = override(Config(), ["fge.epochs=20", "sgd.momentum=0", "curve.kind=polygonal-chain", "seed=7"])
    assert (config.fge.epochs, config.sgd.momentum, config.curve.kind, config.seed) == (20, 0.0, "polygonal-chain", 7)
    assert isinstance(config.sgd.momentum, float)
    assert override(Config(), ['model.options={"channels": [4, 4, 4]}']).model.options == {"channels": [4, 4, 4]}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("fge.epoch=3", "unknown setting 'fge.epoch'; did you mean epochs"),
        ("epochs=3", "unknown setting 'epochs'; did you mean"),
        ("fge.epochs.x=3", "unknown setting 'fge.epochs.x'"),
        ("fge.epochs", "expected FIELD=VALUE"),
        ("fge.epochs=many", "fge.epochs is 'many'; expected int"),
        ("fge.epochs=2.5", "fge.epochs is 2.5; expected int"),
        ("fge=3", "fge is 3; expected FgeConfig"),
        ("fge.alpha_1=0.001", "fge.alpha_1 is 0.001; expected more than alpha_2, 0.01"),
        ("fge.cycle_epochs=0", "fge.cycle_epochs is 0; expected 1 or more"),
        ("fge.cycle_epochs=39", "fge.cycle_epochs is 39; expected no more than the run has, fge.epochs 38"),
        ("fge.start_epochs=[21]", "fge.start_epochs is 21; expected 1 to 20"),
        ("fge.start_epochs=[]", "fge.start_epochs is []; expected one or more"),
        ("fge.start_epochs=[2, 2]", "expected one or more different epochs"),
        ('fge.start_epochs=["2"]', "expected whole numbers"),
        ("methods=[]", "methods is []; expected some of ind, sse, fge, swa, swag, curve"),
        ('methods=["sse","boosting"]', "methods is ['sse', 'boosting']"),
        ('methods=["curve","swag"]', "methods has swag, which is made of FGE's snapshots; add fge"),
        ("ind.runs=1", "ind.runs is 1; expected 2 to 1000"),
        ("fge.noise=-1", "fge.noise is -1.0; expected 0.0 or more"),
        ("adversary.norm=l1", "adversary.norm is 'l1'; expected 'none' or 'linf' or 'l2'"),
        ("adversary.epsilon=0", "adversary.epsilon is 0.0; expected more than 0.0"),
        ("adversary.steps=0", "adversary.steps is 0; expected 1 to 1000"),
        ("adversary.step_size=NaN", "adversary.step_size is nan; expected more than 0.0"),
        ("adversary.random_start=1", "adversary.random_start is 1; expected bool"),
        ("device=tpu", "device is 'tpu'; expected 'auto' or 'cpu' or 'cuda'"),
        ("precision=int8", "precision is 'int8'"),
        ("data.augment=blur", "data.augment is 'blur'; expected 'none' or 'flip-crop'"),
        ("curve.bends=0", "curve.bends is 0; expected 1 to 100"),
        ("curve.bends=1100", "curve.bends is 1100; expected 1 to 100"),
        ('name="a b"', "name is 'a b'; expected 1 to 128 letters"),
        ('version=""', "version is ''; expected 1 to 128 letters"),
        ("threads=99999999999", "threads is 99999999999; expected 0 to 1024"),
        ("endpoint.learning_rate=Infinity", "endpoint.learning_rate is inf; expected more than 0.0, up to 1e+09"),
        ("data.split_seed=-1", "data.split_seed is -1"),
        ("curve.kind=spline", "curve.kind is 'spline'; expected 'bezier' or 'polygonal-chain'"),
        ("curve.select=22", "curve.select is 22; expected 0 to 21"),
        ("fge.select=-1", "fge.select is -1; expected 0 or more"),
        ("curve.start=zero", "curve.start is 'zero'; expected 'linear' or 'random'"),
        ("curve.grid=1", "curve.grid is 1; expected 2 or more"),
        ("sgd.momentum=1.0", "sgd.momentum is 1.0"),
        ("endpoint.learning_rate=0", "endpoint.learning_rate is 0.0; expected more than 0.0"),
        ("seed=-1", "seed is -1"),
        ("data.train_rows=-1", "data.train_rows is -1; expected 0 or more"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(assignment: str, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        override(Config(), [assignment])
    assert message in str(caught.value)


def test_fields_that_depend_on_each_other_may_come_in_any_order() -> None:
    for assignments in (["endpoint.epochs=4", "fge.start_epochs=[2]"], ["fge.start_epochs=[2]", "endpoint.epochs=4"]):
        assert override(Config(), assignments).fge.start_epochs == [2]


def test_every_recipe_carries_its_seed() -> None:
    assert all(recipe(11).seed == 11 for recipe in RECIPES.values())


def test_a_config_comes_back_from_its_dictionary() -> None:
    config = override(Config(), ["fge.start_epochs=[3,4]", "endpoint.epochs=5", "model.options.channels=[4,8,8]"])
    assert config.model.options == {"channels": [4, 8, 8]}
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for changed in ({"colour": "blue"}, {"fge": {"epoch": 3}}, {"fge": 3}):
        with pytest.raises(InvalidConfig, match="not this version's"):
            from_dict(config.to_dict() | changed)


def test_settings_of_an_earlier_version_are_those_with_the_defaults_of_what_came_since() -> None:
    config = override(Config(), ["fge.epochs=20", 'model.options={"hidden": 4}'])
    earlier = config.to_dict()
    del earlier["export"], earlier["fge"]["noise"]
    assert completed(earlier) == config.to_dict()
    assert completed({"start_sha256": ["0"]})["start_sha256"] == ["0"]
