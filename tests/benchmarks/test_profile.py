"""Sampled stacks: which stage a sample belongs to, and the bars of a flame graph."""

from pathlib import Path

import pytest

from benchmarks.profile import flame, phases, stacks

RAW = [
    "main (serving/__main__.py);execute (serving/ensemble.py:90);combine (serving/combine.py:20);_sum (numpy/x.py) 3",
    "main (serving/__main__.py);execute (serving/ensemble.py:90) 2",
    "main (serving/__main__.py);run (asyncio/events.py);parse (serving/request.py) 4",
    "",
    "main (serving/__main__.py);_worker (concurrent/futures/thread.py:81) 100",
]


def test_a_sample_belongs_to_the_innermost_frame_that_is_known_and_waiting_threads_to_none() -> None:
    counts = stacks.by_stage(stacks.parse(RAW))
    assert {name: count for name, count in counts.items() if count} == {"combine": 3, "batch": 2, "parse": 4}


def test_a_line_without_a_count_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        stacks.parse(["main;execute"])


def test_a_bar_is_as_wide_as_its_samples_and_stands_on_its_caller() -> None:
    found = {
        name.partition(" ")[0]: (depth, start, width) for depth, start, width, name, _ in flame.bars(stacks.parse(RAW))
    }
    assert found == {
        "main": (0, 0, 9),
        "execute": (1, 0, 5),
        "run": (1, 5, 4),
        "combine": (2, 0, 3),
        "parse": (2, 5, 4),
        "_sum": (3, 0, 3),
    }


def test_the_picture_is_a_file(tmp_path: Path) -> None:
    flame.draw(tmp_path / "x" / "flame.png", stacks.parse(RAW), 10.0, "title")
    assert (tmp_path / "x" / "flame.png").read_bytes().startswith(b"\x89PNG")


def test_a_phase_takes_the_mean_between_two_looks_and_overhead_is_all_but_execution() -> None:
    text = "\n".join(
        f"# TYPE ensemble_{name}_seconds histogram\n"
        f"ensemble_{name}_seconds_sum {{{name}}}\n"
        f"ensemble_{name}_seconds_count {{count}}"
        for name in ("request", "queue", "execute", "combine")
    )
    before = phases.totals(text.format(request=1.0, queue=0.5, execute=0.25, combine=0.125, count=3) + "\n")
    after = phases.totals(text.format(request=1.009, queue=0.501, execute=0.256, combine=0.1255, count=5) + "\n")
    values = [int(line.split("|")[2]) for line in phases.table(before, after) if "µs" not in line and "---" not in line]
    assert values == [4500, 500, 3000, 250, 750, 1500]
