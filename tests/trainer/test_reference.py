import math
from pathlib import Path

import pytest

from trainer.errors import InvalidConfig
from trainer.reference import resolve


def test_functions_are_found_in_modules_and_in_files(tmp_path: Path) -> None:
    assert resolve("math:sqrt", "x") is math.sqrt
    (tmp_path / "mine.py").write_text("def answer():\n    return 42\n")
    assert resolve(f"{tmp_path / 'mine.py'}:answer", "x")() == 42


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("small", "x is 'small'; expected MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("math:", "expected MODULE:FUNCTION"),
        ("no.such.module:f", "x is 'no.such.module:f': ModuleNotFoundError"),
        ("math:no_such_function", "AttributeError"),
        ("math:pi", "x is 'math:pi', a float; expected a function"),
        ("nowhere/file.py:f", "there is no file 'nowhere/file.py'"),
    ],
)
def test_what_cannot_be_found_is_refused_by_name(reference: str, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        resolve(reference, "x")
    assert message in str(caught.value)


def test_a_file_that_fails_to_import_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('first\\nsecond')\n")
    with pytest.raises(InvalidConfig, match=r"RuntimeError: first$"):
        resolve(f"{tmp_path / 'broken.py'}:f", "x")
