"""The GPU's script, on the CPU: every contender answers alike, and what is measured is not measured again."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu


def test_a_contender_that_answers_otherwise_is_refused() -> None:
    rows = gpu.pictures(2, 4)
    right, wrong = np.ones((1, 2, 3)), np.full((1, 2, 3), 1.1)
    with pytest.raises(RuntimeError, match="logits are off by"):
        gpu.turns({"ours": lambda rows: right, "torch": lambda rows: wrong}, rows, 0.0)
    with pytest.raises(RuntimeError, match="logits are off by"):
        gpu.turns({"ours": lambda rows: right, "torch": lambda rows: right * np.nan}, rows, 0.0)


@pytest.mark.slow
def test_it_runs_small_on_a_cpu_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["gpu", "--device", "cpu", "--small", "--seconds", "0.5", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*arguments, "--only", "throughput"])
    assert gpu.main() == 0
    monkeypatch.setattr(gpu, "MEASUREMENTS", gpu.MEASUREMENTS | {"throughput": None})  # would fail if it ran
    monkeypatch.setattr("sys.argv", arguments)
    assert gpu.main() == 0
    printed = capsys.readouterr().out
    assert "of the in-process peak" in printed
    assert "Eight members take" in printed
    assert "one picture a request, 4 clients" in printed
