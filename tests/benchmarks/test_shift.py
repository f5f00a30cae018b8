"""The benchmark of shift, a few epochs on digits: to the table, the picture and the record."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import shift

TINY = ["--only", "digits", "--seeds", "2", "--rows", "40"]
QUICK = [
    "endpoint.epochs=2",
    "fge.start_epochs=[1]",
    "fge.epochs=4",
    "fge.cycle_epochs=2",
    "curve.epochs=1",
    "threads=1",
]


@pytest.mark.slow
def test_it_compares_predictors_over_seeds_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [part for assignment in QUICK for part in ("--set", assignment)]
    monkeypatch.setattr(sys, "argv", ["shift", *TINY, *sets, "--record", "record", "--picture", "shift.png"])
    assert shift.main() == 0
    table = Path("record", "table.md").read_text()
    for predictor in shift.PREDICTORS:
        assert table.count(f"| {predictor} |") == 3  # clean, corrupted, severity 5
    assert Path("shift.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(Path("record", "record.json").read_text())
    single, independent = record["found"]["digits"]["0"][0], record["found"]["digits"]["0"][2]
    assert (single["predictor"], independent["predictor"]) == ("single network", "independent")
    assert independent["training_epochs"] == 4 * single["training_epochs"]
    assert len(single["by_severity"]["nll"].split()) == 6
    monkeypatch.setattr(shift.experiment.pipeline, "run", None)  # would fail if it trained
    assert shift.main() == 0
    assert Path("record", "table.md").read_text() == table
