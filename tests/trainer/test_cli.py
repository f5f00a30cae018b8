import json
import shutil
from pathlib import Path

import pytest
import torch

from protos.validate import validate
from tests import tiny_ensemble
from tests.conftest import SMALL
from trainer.__main__ import main
from trainer.checkpoint import Checkpoints
from trainer.errors import TrainingDiverged
from trainer.models.small_conv import small_conv
from trainer.pipeline import Outcome


def settings() -> list[str]:
    return [part for assignment in SMALL for part in ("--set", assignment)]


def test_run_prints_the_table_and_where_everything_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--out", str(tmp_path / "out"), *settings()]) == 0
    output = capsys.readouterr()
    for name in ("single network", "endpoint pair", "FGE", "curve"):
        assert name in output.out
    assert str(tmp_path / "out" / "report.html") in output.out
    assert "stage='curve' epoch=10/10" in output.err  # plain lines where there is no terminal
    assert len(validate(tmp_path / "out" / "fge").manifest.members) == 3


def test_evaluate_prints_both_tables_and_where_the_report_is(
    small_run: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_run.report.parent, tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--points", "5", "--members", "2", "3", "--plane", "0"]) == 0
    output = capsys.readouterr()
    for text in (
        "straight",
        "bezier, 1",
        "endpoint pair",
        "curve, 3",
        "no trivial curve: the network",
        "evaluation.html",
    ):
        assert text in output.out
    assert "evaluated='curve' networks=5" in output.err


def test_validate_describes_a_good_directory(tiny_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tiny_directory)]) == 0
    output = capsys.readouterr().out
    assert "tiny, version 1" in output
    assert "input FP32 [B, 4]" in output
    assert "4, from 4 weight sets" in output


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "digits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digits", "--set", "fge.epoch=3"], "unknown setting 'fge.epoch'; did you mean epochs"),
        (["run", "digits", "--seed", "-1"], "seed is -1; expected 0 to"),
        (["run", "digits", "--set", "sgd.batch_size=299"], "leaves a batch of one of 300 rows"),
        (["run", "digits", "--set", "sgd.batch_size=100", "--set", "fge.cycle_epochs=1"], "make a cycle of 3"),
        (["run", "digits", "--set", 'model.options={"channels": [1, 2]}'], "failed: ValueError"),
        (["run", "digits", "--set", "model.factory=no.module:x"], "model.factory is 'no.module:x'"),
        (["run", "digist"], "there is no recipe 'digist'; did you mean digits"),
        (["widths", "digist", "--vary", "model.options.channels=[[1,1,1]]"], "there is no recipe 'digist'"),
        (["run", "paper-vgg61"], "there is no recipe 'paper-vgg61'; did you mean paper-vgg16"),
        (["run", "digits", "--model", "torchvision:resnet19"], "torchvision does not have; did you mean resnet18"),
        (["run", "digits", "--data", "torchvision:CIFAR11"], "torchvision does not have; did you mean CIFAR10"),
        (["run", "digits", "--data", "digist"], "data.source is 'digist'; expected digits, torchvision:NAME"),
        (["run", "digits", "--from", "net.pt@3"], "start is 'net.pt': No such file or directory"),
        (["run", "digits", "--set", "fge.cycle_epochs=0"], "fge.cycle_epochs is 0; expected 1 or more"),
        (["run", "digits", "--set", "fge.cycle_epochs=99"], "expected no more than the run has, fge.epochs 38"),
        (["run", "digits", "--set", "fge.alpha_1=0.01"], "fge.alpha_1 is 0.01; expected more than alpha_2, 0.01"),
        (["run", "digits", "--set", "curve.bends=0"], "curve.bends is 0; expected 1 to"),
        (["evaluate", "nothing"], "'nothing' holds no finished run"),
        (["evaluate", "nothing", "--points", "2"], "--points is 2; expected 3 or more"),
        (["evaluate", "nothing", "--members", "1", "3"], "--members is [1, 3]; expected sizes of 2 or more"),
        (["widths", "digits", "--vary", "model.options.channels=3"], "--vary is 'model.options.channels=3'; expected"),
        (["validate", "nothing"], "no-directory: 'nothing' is not a directory"),
        (["export", "nothing", "--standalone", "x"], "no-directory"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("thalweg-train: error: ")]
    assert message in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_run_never_replaces_what_is_no_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out/fge").mkdir(parents=True)
    (tmp_path / "out/fge/thesis.txt").write_text("years of work")
    (tmp_path / "file").touch()
    for out, message in (("out", "is there and is no ensemble directory"), ("file", "File exists")):
        assert main(["run", "digits", "--out", str(tmp_path / out), *settings()]) == 2
        output = capsys.readouterr().err
        assert message in output
        assert "stage=" not in output  # before any training
    assert (tmp_path / "out/fge/thesis.txt").read_text() == "years of work"


def test_a_diverging_run_says_so_and_keeps_the_last_ensemble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_ensemble.write(tmp_path / "fge")
    arguments = ["run", "digits", "--out", str(tmp_path), *settings(), "--set", "endpoint.learning_rate=1e9"]
    assert main(arguments) == 2
    assert "endpoint: the " in capsys.readouterr().err
    assert validate(tmp_path / "fge").manifest.name == "tiny"
    assert issubclass(TrainingDiverged, Exception)


def test_a_checkpoint_of_another_network_or_other_classes_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, message in (
        (small_conv(classes=5, in_channels=1), "is [5, 32]; the network for these data has [10, 32]"),
        (torch.nn.Linear(3, 2), "keys missing (0.weight, 1.weight, 1.bias, …); 2 keys unexpected (weight, bias)"),
    ):
        torch.save(module.state_dict(), tmp_path / "net.pt")
        assert main(["run", "digits", "--out", str(tmp_path / "out"), "--from", str(tmp_path / "net.pt")]) == 2
        output = capsys.readouterr().err
        assert message in output
        assert "stage=" not in output


def test_a_diverged_stage_says_where_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "digits", "--only", "fge", "--out", str(tmp_path), *settings()]
    assert main([*arguments, "--set", "fge.alpha_1=1e8"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert line.startswith("thalweg-train: error: fge: the ")
    assert line.endswith("in epoch 1; try a lower learning rate")
    state = Checkpoints(tmp_path, json.loads((tmp_path / ".checkpoints/config.json").read_text()), 0.0)
    kept = state.stage("endpoint-0").load()
    assert kept is not None
    assert kept.epoch == 6
    assert all(tensor.isfinite().all() for tensor in kept.tensors.values())
    # Another rate is another run: the old one is not thrown away unasked.
    assert main(arguments) == 2
    assert "fge.alpha_1 was 100000000.0 and is 0.5; go on with those, choose another --out, or add --restart" in (
        capsys.readouterr().err
    )
    assert main([*arguments, "--restart"]) == 0
