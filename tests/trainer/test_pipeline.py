"""The whole run, small: what it writes, that it repeats bit for bit, and what its directories weigh."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from protos.validate import validate
from tests.conftest import SMALL
from trainer import data, descent, evaluate, pipeline, temperature
from trainer.config import DataConfig, override
from trainer.errors import InvalidConfig
from trainer.pipeline import Outcome
from trainer.progress import Progress
from trainer.recipes import RECIPES

QUIET = Progress(Console(quiet=True))


def hashes(directory: Path) -> list[str]:
    stored = validate(directory).manifest
    return [file.sha256 for file in (stored.graph, *(e.file for e in (*stored.weight_sets, *stored.statistics)))]


def test_equal_seeds_give_equal_bytes_and_another_seed_other_weights(small_run: Outcome, tmp_path: Path) -> None:
    again = pipeline.run(override(RECIPES["digits"](0), SMALL), tmp_path / "again", QUIET)
    other = pipeline.run(override(RECIPES["digits"](1), SMALL), tmp_path / "other", QUIET)
    for ensemble in ("fge", "curve"):
        first = hashes(small_run.ensembles[ensemble])
        assert hashes(again.ensembles[ensemble]) == first
        assert not set(hashes(other.ensembles[ensemble])) & set(first)
    temperatures = [m.temperature for m in validate(small_run.ensembles["curve"]).manifest.members]
    assert [m.temperature for m in validate(again.ensembles["curve"]).manifest.members] == temperatures
    assert again.results.rows == small_run.results.rows


def test_one_stages_settings_do_not_move_anothers_random_numbers(small_run: Outcome, tmp_path: Path) -> None:
    config = override(RECIPES["digits"](0), [*SMALL, "fge.alpha_1=0.4"])
    changed = pipeline.run(config, tmp_path / "changed", QUIET)
    assert hashes(changed.ensembles["curve"]) == hashes(small_run.ensembles["curve"])
    assert hashes(changed.ensembles["fge"]) != hashes(small_run.ensembles["fge"])


def test_the_manifest_says_where_everything_comes_from(small_run: Outcome) -> None:
    described = validate(small_run.ensembles["fge"]).manifest
    provenance = described.provenance
    assert provenance.config["fge"]["cycle_epochs"] == 2
    assert list(provenance.seeds) == [0]
    assert provenance.dataset.name == "digits"
    assert dict(provenance.dataset.rows) == {"train": 300, "calibration": 300, "test": 1197}
    assert provenance.library_versions["torch"] == torch.__version__.split("+")[0]
    assert [m.id for m in described.members] == ["fge-0-0", "fge-0-1", "fge-0-2"]
    assert [m.fge_snapshot.epoch for m in described.members] == [1.0, 3.0, 5.0]
    predictors = [(m.predictor, m.split, m.rows) for m in described.metrics]
    assert predictors == [
        (name, split, rows)
        for name in ("ensemble", "single network", "endpoint pair", "cascade")
        for split, rows in (("calibration", 300), ("test", 1197))
    ]
    assert [m.split for member in described.members for m in member.metrics] == ["train", "calibration"] * 3


def test_the_curve_stores_its_control_points_and_its_ends_are_the_endpoints(small_run: Outcome) -> None:
    stored = validate(small_run.ensembles["curve"])
    assert list(stored.weight_sets) == ["endpoint-0", "bend-1", "endpoint-1"]
    assert [m.curve_point.t for m in stored.manifest.members] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for member_index, weight_set in ((0, "endpoint-0"), (-1, "endpoint-1")):
        tensors = stored.tensors(stored.manifest.members[member_index])
        for name, tensor in stored.weight_sets[weight_set].items():
            np.testing.assert_array_equal(tensors[name], tensor)


def test_the_report_is_one_file_with_its_pictures_inside(small_run: Outcome) -> None:
    page = small_run.report.read_text()
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{5000,}"', page)) == 5
    assert not re.search(r'(src|href)="(?!data:)', page)
    for row in small_run.results.rows:
        assert f"<td>{row.predictor}</td><td>{row.members}</td>" in page
        assert f"{row.quality.nll:.4f}" in page
    results = json.loads(small_run.results_file.read_text())
    assert [row["predictor"] for row in results["rows"]] == ["single network", "endpoint pair", "FGE", "curve"]
    trace = results["fge"]
    snapshots = [i for i in trace["iteration"] if i % trace["cycle_iterations"] == trace["cycle_iterations"] // 2]
    assert snapshots == [6, 18, 30]


def test_the_test_file_holds_what_the_split_does(small_run: Outcome) -> None:
    test = data.load(DataConfig()).test
    with np.load(small_run.test_file, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["inputs"], test.inputs.numpy())
        np.testing.assert_array_equal(file["targets"], test.targets.numpy())


@pytest.mark.parametrize(("kind", "bends"), [("polygonal-chain", 1), ("bezier", 3), ("polygonal-chain", 2)])
def test_every_curve_trains_exports_and_loads(tmp_path: Path, kind: str, bends: int) -> None:
    config = override(RECIPES["digits"](0), [*SMALL, f"curve.kind={kind}", f"curve.bends={bends}", "curve.epochs=2"])
    outcome = pipeline.run(config, tmp_path / "run", QUIET)
    stored = validate(outcome.ensembles["curve"])
    assert len(stored.weight_sets) == bends + 2
    assert {m.curve_point.bends for m in stored.manifest.members} == {bends}


def endpoint(outcome: Outcome, name: str, member: int) -> tuple[Tensor, Tensor]:
    """Weights [P] of one end, and its logits on the test rows, from what was exported."""
    splits = data.load(DataConfig())
    network = pipeline.build_network(RECIPES["digits"](0), splits)
    stored = validate(outcome.ensembles["curve"])
    weights = network.flatten({key: torch.tensor(value) for key, value in stored.weight_sets[name].items()})
    tensors = stored.tensors(stored.manifest.members[member])
    statistics = {key: torch.tensor(tensors[key]) for key in network.initial_statistics()}
    with torch.no_grad(), network.evaluating():
        return weights, network.logits(weights, statistics, splits.test.inputs)


def test_an_aligned_curve_ends_in_the_same_function_nearer_by_and_goes_on_with_the_same_bits(
    small_run: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SMALL, 'methods=["curve"]', "curve.align=true", "checkpoint_seconds=0"]
    config = override(RECIPES["digits"](0), settings)
    aligned = pipeline.run(config, tmp_path / "aligned", QUIET)
    first, _ = endpoint(small_run, "endpoint-0", 0)
    last, expected = endpoint(small_run, "endpoint-1", -1)
    moved, logits = endpoint(aligned, "endpoint-1", -1)
    assert torch.equal(endpoint(aligned, "endpoint-0", 0)[0], first)
    assert (moved - first).norm() < (last - first).norm()
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)  # the statistics are sums in another order, too
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert aligned.results.segment is not None
    assert small_run.results.segment is not None
    assert aligned.results.segment.length < small_run.results.segment.length

    real = descent._check_finite

    def dies(loss: Tensor, vectors: list[Tensor], name: str, epoch: int) -> float:
        if name == "curve" and epoch == 4:
            raise KeyboardInterrupt
        return real(loss, vectors, name, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(descent, "_check_finite", dies)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config, tmp_path / "killed", QUIET)
    resumed = pipeline.run(config, tmp_path / "killed", QUIET)
    assert hashes(resumed.ensembles["curve"]) == hashes(aligned.ensembles["curve"])


def test_one_method_alone_trains_no_more_than_it_needs(small_run: Outcome, tmp_path: Path) -> None:
    config = override(RECIPES["digits"](0), [*SMALL, 'methods=["fge"]'])
    outcome = pipeline.run(config, tmp_path / "fge", QUIET)
    assert hashes(outcome.ensembles["fge"]) == hashes(small_run.ensembles["fge"])
    assert list(outcome.ensembles) == ["fge"]
    assert [row.predictor for row in outcome.results.rows] == ["single network", "FGE"]
    assert "straight segment" not in outcome.report.read_text()

    config = override(RECIPES["digits"](0), [*SMALL, 'methods=["curve"]'])
    outcome = pipeline.run(config, tmp_path / "curve", QUIET)
    assert hashes(outcome.ensembles["curve"]) == hashes(small_run.ensembles["curve"])
    assert [row.predictor for row in outcome.results.rows] == ["single network", "endpoint pair", "curve"]
    assert "The walk by iteration" not in outcome.report.read_text()


def test_several_starts_pool_their_snapshots(small_run: Outcome, tmp_path: Path) -> None:
    config = override(RECIPES["digits"](0), [*SMALL, 'methods=["fge"]', "fge.start_epochs=[4, 6]"])
    outcome = pipeline.run(config, tmp_path / "run", QUIET)
    members = validate(outcome.ensembles["fge"]).manifest.members
    assert [(m.fge_snapshot.run, m.fge_snapshot.cycle) for m in members] == [(r, c) for r in (0, 1) for c in range(3)]
    assert set(hashes(outcome.ensembles["fge"])) >= set(hashes(small_run.ensembles["fge"])[1:])  # the first run's
    assert outcome.results.rows[1].training_epochs == 6 + 2 * 5


def test_selection_exports_the_best_members_on_calibration_and_only_their_weights(
    small_run: Outcome, tmp_path: Path
) -> None:
    config = override(RECIPES["digits"](0), [*SMALL, "fge.select=2", "curve.select=2"])
    outcome = pipeline.run(config, tmp_path / "run", QUIET)
    for name, weight_sets in (("fge", 2), ("curve", 3)):
        every, chosen = validate(small_run.ensembles[name]).manifest, validate(outcome.ensembles[name]).manifest
        alone = {m.id: q.nll for m in every.members for q in m.metrics if q.split == "calibration"}
        assert len(chosen.members) == 2
        assert chosen.members[0].id == min(alone, key=alone.__getitem__)
        assert len(chosen.weight_sets) == len(list((outcome.ensembles[name] / "weights").iterdir())) == weight_sets
        assert {file.file.sha256 for file in chosen.weight_sets} <= {file.file.sha256 for file in every.weight_sets}
    assert [row.members for row in outcome.results.rows] == [1, 2, 2, 2]


def test_a_network_of_other_classes_or_rows_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def five():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))\n"
        "def wide():\n    return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))\n"
    )
    for name, message in (
        ("five", r"gives \[2, 5\] for 2 rows; digits has 10 classes"),
        ("wide", "cannot take rows of"),
    ):
        factory = f"model.factory={tmp_path}/mine.py:{name}"
        config = override(RECIPES["digits"](0), [*SMALL, "model.options={}", factory])
        with pytest.raises(InvalidConfig, match=message):
            pipeline.run(config, tmp_path / "run", QUIET)


def test_a_network_that_cannot_take_channels_last_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("""
import torch
class Viewing(torch.nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).view(x.size(0), -1))
def build(classes):
    return Viewing(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(72, classes))
""")
    sets = [*SMALL, "model.options={}", f"model.factory={tmp_path}/mine.py:build", "channels_last=true"]
    with pytest.raises(InvalidConfig, match="channels_last is True, compile False; with these the network fails"):
        pipeline.run(override(RECIPES["digits"](0), sets), tmp_path / "run", QUIET)


@pytest.mark.gpu
def test_on_a_gpu_the_ensembles_are_as_good(small_run: Outcome, tmp_path: Path) -> None:
    for number, sets in enumerate(
        (["precision=fp32"], ["precision=bf16", "channels_last=true"], ["precision=fp16"], ["compile=true"])
    ):
        config = override(RECIPES["digits"](0), [*SMALL, "device=cuda", *sets])
        outcome = pipeline.run(config, tmp_path / str(number), QUIET)
        for mine, reference in zip(outcome.results.rows, small_run.results.rows, strict=True):
            assert mine.quality.nll == pytest.approx(reference.quality.nll, abs=0.1)


def test_every_method_trains_exports_and_loads_and_networks_are_shared(small_run: Outcome, tmp_path: Path) -> None:
    methods = 'methods=["ind","sse","fge","swa","swag","curve"]'
    sets = [*SMALL, methods, "ind.runs=3", "sse.cycles=2", "sse.cycle_epochs=2", "fge.swag_samples=4"]
    outcome = pipeline.run(override(RECIPES["digits"](0), sets), tmp_path / "all", QUIET)
    counts = {name: len(validate(folder).manifest.members) for name, folder in outcome.ensembles.items()}
    assert counts == {"ind": 3, "sse": 2, "fge": 3, "swa": 1, "swag": 4, "curve": 5}
    for method in ("fge", "curve"):  # more methods do not move the others' random numbers
        assert hashes(outcome.ensembles[method]) == hashes(small_run.ensembles[method])
    ind, curve = (validate(outcome.ensembles[name]) for name in ("ind", "curve"))
    for identifier in ("endpoint-0", "endpoint-1"):
        for name, tensor in curve.weight_sets[identifier].items():
            np.testing.assert_array_equal(ind.weight_sets[identifier][name], tensor)
    fge, swa = (validate(outcome.ensembles[name]) for name in ("fge", "swa"))
    mean = np.mean([tensors["0.weight"] for tensors in fge.weight_sets.values()], axis=0, dtype=np.float64)
    np.testing.assert_allclose(swa.weight_sets["swa-0"]["0.weight"], mean, atol=1e-7)
    epochs = {row.predictor: row.training_epochs for row in outcome.results.rows}
    assert epochs == {
        "single network": 6, "endpoint pair": 12, "independent": 18, "SSE": 4, "FGE": 9, "SWA": 9, "SWAG": 9,
        "curve": 22,
    }  # fmt: skip


def test_budgets_are_runs_from_different_endpoints(tmp_path: Path) -> None:
    config = override(RECIPES["digits"](0), [*SMALL, 'methods=["fge"]', "fge.runs=2", "fge.start_epochs=[3,4]"])
    outcome = pipeline.run(config, tmp_path / "two", QUIET)
    members = validate(outcome.ensembles["fge"]).manifest.members
    assert [(m.fge_snapshot.run, m.fge_snapshot.cycle) for m in members] == [(r, c) for r in range(4) for c in range(3)]
    (row,) = [row for row in outcome.results.rows if row.predictor == "FGE"]
    assert row.training_epochs == 2 * 4 + 4 * 5


def test_swag_of_a_single_snapshot_is_refused_before_training(tmp_path: Path) -> None:
    config = override(RECIPES["digits"](0), [*SMALL, 'methods=["fge","swag"]', "fge.epochs=2"])
    with pytest.raises(InvalidConfig, match="methods has swag, and FGE takes 1 snapshot a run; expected 2 or more"):
        pipeline.run(config, tmp_path / "out", QUIET)


def test_stored_logits_give_the_tables_numbers_again(small_run: Outcome) -> None:
    manifest = validate(small_run.ensembles["fge"]).manifest
    logits = load_file(small_run.report.parent / "logits/fge.safetensors")
    temperatures = torch.tensor([member.temperature for member in manifest.members], dtype=torch.float64)
    probs = temperature.pool(logits["test"], temperatures, manifest.temperature)
    (row,) = [row for row in small_run.results.rows if row.predictor == "FGE"]
    assert evaluate.quality(probs, data.load(DataConfig()).test.targets) == row.quality
