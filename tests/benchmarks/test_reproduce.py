"""The paper's experiments, each with two epochs on digits or on a few sentences: to the table and the record."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from trainer import pipeline

TINY = [
    "--seeds", "1",
    "--threads", "1",
    "--set", "data.classes=0",
    "--set", "data.train_rows=60",
    "--set", "data.calibration_rows=60",
    "--set", "sgd.batch_size=30",
    "--set", "endpoint.epochs=3",
    "--set", "fge.start_epochs=[1]",
    "--set", "fge.epochs=2",
    "--set", "curve.epochs=1",
]  # fmt: skip


def published(script: str, arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict]:
    """The table and the record that the script writes."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--record", "record", *arguments])
    assert import_module(f"benchmarks.reproduce.{script}").main() == 0
    return Path("record", "table.md").read_text(), json.loads(Path("record", "record.json").read_text())


@pytest.mark.parametrize(
    ("script", "arguments", "rows"),
    [
        ("table1", ["--set", "sse.cycle_epochs=1", "--budgets", "2"], ["1B | ind", "1B | sse", "2B | fge"]),
        pytest.param(
            "table2",
            ["--points", "3"],
            ["single | ours", "segment | ours", "bezier | ours", "polygonal-chain | ours"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "section43",
            ["--points", "4"],
            ["endpoint pair | 2", "independent | 3", "chain | 4"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "section61",
            ["--set", "fge.epochs=3"],
            ["start | 1", "FGE | 2", "start and FGE | 3"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "section42",
            ["--points", "3", "--set", 'model.options={"side":8}'],
            ["[8, 8] | ", "[256, 256] | "],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_tiny_run_ends_with_a_table_and_a_record_and_a_second_one_trains_nothing(
    script: str, arguments: list[str], rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TINY, "--data", "digits", *arguments]
    table, record = published(script, arguments, tmp_path, monkeypatch)
    assert [row for row in rows if f"| {row}" not in table] == []
    assert record["command"].startswith(f"python -m benchmarks.reproduce.{script}")
    assert {"commit", "date", "machine", "libraries", "config"} <= record.keys()
    assert list(record["found"]) == ["0"]  # by seed

    def train(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pipeline, "run", train)
    assert published(script, arguments, tmp_path, monkeypatch)[0] == table


def test_budget_scales_the_epochs_of_a_recurrent_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h\n" * 40)
    sets = [
        "data.window=4",
        "data.train_rows=0",
        "data.calibration_rows=10",
        "data.evaluation_rows=10",
        "endpoint.epochs=4",
    ]
    sets += ['model.options={"hidden":8}', "curve.epochs=4", "fge.start_epochs=[2]"]
    arguments = [argument for assignment in sets for argument in ("--set", assignment)]
    arguments += ["--seeds", "1", "--budget", "0.5", "--points", "3", "--data", f"text:{text},{text}"]
    table, record = published("table3", arguments, tmp_path, monkeypatch)
    assert [record["config"][stage]["epochs"] for stage in ("endpoint", "curve")] == [2, 2]
    assert all(f"| {path} | ours |" in table for path in ("single", "segment", "bezier"))
    assert min(record["found"]["0"]["bezier"]["test"]) >= 1.0
