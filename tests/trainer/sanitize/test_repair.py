"""A repair from end to end: what it exports and what it refuses; the slow test plants a backdoor and removes it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
from torch import Tensor

from benchmarks import backdoor
from protos.ensemble_pb2 import BEZIER
from protos.validate import validate
from tests.trainer.test_pipeline import QUIET
from trainer import data, descent, pipeline
from trainer.__main__ import main
from trainer.config import Config, override
from trainer.errors import InvalidConfig
from trainer.recipes import RECIPES
from trainer.sanitize import repair
from trainer.sanitize.repair import SETTINGS, Outcome
from trainer.sanitize.results import Options

SMALL = ["data.train_rows=100", "curve.epochs=2", "curve.grid=11", "curve.members=3", "model.options.channels=[4,4,4]"]


class Repair(NamedTuple):
    config: Config
    options: Options
    out: Path
    suspect: Tensor  # [P]
    outcome: Outcome


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Repair:
    """Of a network that nobody trained; the curve is exported."""
    out = tmp_path_factory.mktemp("sanitized")
    config = override(RECIPES["digits"](0), [*SETTINGS, *SMALL])
    network = pipeline.build_network(config, data.load(config.data))
    suspect = network.initial_weights()
    tensors = {name: tensor.clone() for name, tensor in network.unflatten(suspect).items()}
    safetensors.torch.save_file(tensors, out / "suspect.safetensors")
    options = Options(
        f"{out}/suspect.safetensors@7", trigger="benchmarks.poison:stamp", target="0", rates=(0.1,), method="curve"
    )
    return Repair(config, options, out, suspect, repair.repair(config, options, out, QUIET))


def test_the_exported_members_lie_on_the_stretch_and_the_suspect_is_not_in_the_directory(done: Repair) -> None:
    stored = validate(done.outcome.ensemble)
    exported = done.outcome.results.exported
    assert exported.between is not None
    assert 0.2 <= exported.between[0] < exported.between[1] <= 0.8
    points = [member.curve_point for member in stored.manifest.members]
    assert [(point.curve, point.t) for point in points] == [(BEZIER, 0.0), (BEZIER, 0.5), (BEZIER, 1.0)]
    for tensors in stored.weight_sets.values():
        flat = np.concatenate([tensors[name].reshape(-1) for name in stored.manifest.parameter_names])
        assert not np.allclose(np.sort(flat), done.suspect.sort().values, rtol=0, atol=1e-6)  # in any order of units


def test_the_manifest_says_where_the_ensemble_comes_from(done: Repair) -> None:
    manifest = validate(done.outcome.ensemble).manifest
    assert list(manifest.provenance.config["start"]) == [done.options.suspect]
    said = manifest.provenance.config["sanitize"]
    assert said["exported"]["method"] == "curve"
    assert tuple(said["exported"]["between"]) == done.outcome.results.exported.between
    assert {entry.predictor for entry in manifest.metrics} >= {"ensemble", "suspect"}


def test_every_method_has_the_same_steps_and_every_number_is_in_the_file(done: Repair) -> None:
    results = done.outcome.results
    assert results.steps == 2 * 2  # 100 rows in batches of 50
    assert [candidate.method for candidate in results.candidates] == ["curve", "fine-tuning", "from scratch"]
    numbers = json.loads(done.outcome.numbers.read_text())
    assert [point["t"] for point in numbers["curves"]["0.1"]] == [i / 10 for i in range(11)]
    assert numbers["suspect"]["test"]["changed"] == {"count": 0, "of": 1397}
    first, *_, last = results.curves["0.1"]
    assert first.scores == last.scores == results.suspect  # the ends compute the same
    page = done.outcome.report.read_text()
    assert "attack success" in page
    assert "data:image/png;base64" in page


def test_another_export_trains_nothing_and_a_single_network_is_an_ensemble_of_one_member(
    done: Repair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(descent, "step", None)
    sets = [part for assignment in SMALL for part in ("--set", assignment)]
    command = ["sanitize", "digits", "--suspect", done.options.suspect, "--out", str(done.out), "--rates", "0.1", *sets]
    assert main([*command, "--rows", "100", "--method", "fine-tuning"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "suspect",
        "from scratch, rate 0.1",
        "only accuracy can be compared",
        "no trigger was given",
        "sanitize.html",
    ):
        assert text in shown
    (member,) = validate(done.outcome.ensemble).manifest.members
    assert member.endpoint.epoch == 7 + 2
    tuned = json.loads(done.outcome.numbers.read_text())["exported"]
    assert tuned["scores"]["test"]["accuracy"] == asdict(done.outcome.results.candidates[1].scores.test.accuracy)

    assert main([*command, "--set", "curve.epochs=3"]) == 2
    assert "unfinished run with other settings: curve.epochs was 2 and is 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"between": (0.3, 0.5)}, r"expected t from 0.4 to 0.6 \(--keep-away\), or --allow-untrusted"),
        ({"between": (0.1, 0.5), "trigger": "f.py:f", "target": "0"}, "expected t from 0.2 to 0.8"),
        ({"between": (0.5, 0.7)}, "--between is 0.5 0.7, and the curve's ends are not trusted"),
        ({"between": (0.6, 0.5)}, "expected LOW < HIGH, from 0 to 1"),
        ({"between": (0.1, 0.5), "keep_away": 0.15}, "expected t from 0.15 to 0.85"),
        ({"keep_away": 0.0}, "--keep-away is 0; expected a number between 0 and 0.5"),
        ({"target": "3"}, "--trigger and --target belong together"),
        ({"rates": (0.1, -1.0)}, r"--rates is \[0.1, -1.0\]; expected different numbers above 0"),
    ],
)
def test_members_near_an_untrusted_end_and_other_options_that_cannot_be_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Options("net.pt", **changes)  # type: ignore[arg-type]


def test_told_so_the_ends_may_be_exported() -> None:
    assert Options("net.pt", between=(0.0, 1.0), allow_untrusted=True).allowed == (0.0, 1.0)


@pytest.mark.parametrize(
    ("assignment", "suspect", "message"),
    [
        ("curve.align=true", "net.pt", "curve.align is true, which would put the permuted units back"),
        ("curve.grid=9", "net.pt", "curve.grid is 9; expected so many points that two or more have t from 0.4 to 0.6"),
        ("curve.epochs=1", "net.pt", "--suspect is 'net.pt': No such file or directory"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    assignment: str, suspect: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = override(RECIPES["digits"](0), [*SETTINGS, *SMALL, assignment])
    with pytest.raises(InvalidConfig, match=message):
        repair.repair(config, Options(suspect), tmp_path / "out", QUIET)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_killed_repair_between_two_suspects_goes_on_and_finds_the_same(
    done: Repair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(done.config, ["checkpoint_seconds=0", "curve.epochs=3"])
    second = tmp_path / "second.safetensors"
    tensors = safetensors.torch.load_file(done.options.suspect.partition("@")[0])
    safetensors.torch.save_file({name: -tensor for name, tensor in tensors.items()}, second)
    options = replace(done.options, second=str(second))
    whole = repair.repair(config, options, tmp_path / "whole", QUIET).results
    assert whole.curves["0.1"][0].scores != whole.curves["0.1"][-1].scores  # the ends are two networks

    real, steps = descent.step, []

    def step(*arguments: Any) -> Tensor:
        steps.append(1)
        if len(steps) == 5:  # in the curve's third epoch, of two batches each
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(descent, "step", step)
    with pytest.raises(KeyboardInterrupt):
        repair.repair(config, options, tmp_path / "killed", QUIET)
    assert not (tmp_path / "killed" / "repaired").exists()
    steps.clear()
    monkeypatch.setattr(descent, "step", lambda *arguments: (steps.append(1), real(*arguments))[1])
    assert repair.repair(config, options, tmp_path / "killed", QUIET).results == whole
    assert len(steps) == 3 * 6 - 4


@pytest.mark.slow
def test_a_planted_backdoor_is_alive_at_the_ends_and_gone_from_what_is_recommended(tmp_path: Path) -> None:
    results = backdoor.run("digits", 90, tmp_path)
    before, after = results.suspect.test, results.recommended.scores.test
    assert before.attack_success is not None
    assert after.attack_success is not None
    assert before.attack_success.value > 0.9
    assert after.attack_success.value < 0.1
    assert after.accuracy.value > before.accuracy.value - 0.03
