from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests import tiny_ensemble
from trainer import standalone
from trainer.__main__ import main
from trainer.errors import OutputExists

ROWS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


def run(path: Path, rows: np.ndarray, *outputs: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {"input": rows})


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 9])
def test_stock_runtime_computes_the_definition(tmp_path: Path, members: int, rows: int) -> None:
    stored = tiny_ensemble.write(tmp_path / "tiny", members=members)
    paths = standalone.write(stored, tmp_path / "out")
    assert [path.name for path in paths] == [*(f"{m.id}.onnx" for m in stored.manifest.members), "ensemble.onnx"]
    for m, path in enumerate(paths[:-1]):
        logits, probs = run(path, ROWS[:rows], "logits", "probs")
        np.testing.assert_allclose(logits, tiny_ensemble.member_logits(ROWS[:rows], members)[m], atol=1e-5)
        np.testing.assert_allclose(probs, tiny_ensemble.member_probs(ROWS[:rows], members)[m], atol=1e-6)
    (probs,) = run(paths[-1], ROWS[:rows], "probs")
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS[:rows], members=members), atol=1e-6)


def test_beyond_a_files_limit_the_tensors_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standalone, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(standalone, "LEAST_EXTERNAL_BYTES", 8)
    paths = standalone.write(tiny_ensemble.write(tmp_path / "tiny"), tmp_path / "out")
    assert (tmp_path / "out/ensemble.onnx.data").stat().st_size > 100
    (probs,) = run(paths[-1], ROWS, "probs")
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)


def test_the_command_line_writes_them_and_replaces_nothing(
    tiny_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(tiny_directory), "--standalone", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert str(tmp_path / "out/ensemble.onnx") in capsys.readouterr().out
    before = (tmp_path / "out/ensemble.onnx").read_bytes()
    assert main(arguments) == 2
    assert "exists already; expected a new directory" in capsys.readouterr().err
    assert (tmp_path / "out/ensemble.onnx").read_bytes() == before
    assert issubclass(OutputExists, Exception)
