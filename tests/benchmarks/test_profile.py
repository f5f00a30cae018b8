"""Sampled stacks: which stage a sample belongs to, and the bars of a flame graph."""

from pathlib import Path

import pytest

from benchmarks.profile import flame, stacks

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
