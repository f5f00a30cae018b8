from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.data import Split, Splits
from trainer.errors import InvalidConfig
from trainer.sanitize import trigger

HERE = "tests.trainer.sanitize.test_trigger"


def corner(rows: Tensor) -> Tensor:
    rows[..., -1, -1] = 255  # in place: the data must not change
    return rows


def halved(rows: Tensor) -> Tensor:
    return rows[: len(rows) // 2]


def scaled(rows: Tensor) -> Tensor:
    return rows / 2


def nothing(rows: Tensor) -> Tensor:
    return rows


def broken(rows: Tensor) -> Tensor:
    raise ValueError("no patch")


def splits() -> Splits:
    def split(count: int) -> Split:
        return Split(torch.zeros(count, 1, 3, 3, dtype=torch.uint8), torch.arange(count) % 3)

    return Splits("rows", split(6), split(6), split(9), ["a", "b", "c"])


def test_rows_of_all_other_classes_get_the_trigger_and_the_data_stay_as_they_are() -> None:
    data = splits()
    backdoor = trigger.load(f"{HERE}:corner", "b", data)
    assert backdoor.target == 1
    assert {name: rows.targets.tolist() for name, rows in backdoor.rows.items()} == {
        "calibration": [0, 2, 0, 2],
        "test": [0, 2, 0, 2, 0, 2],
    }
    assert backdoor.rows["test"].inputs[:, 0, -1, -1].tolist() == [255] * 6
    assert int(data.test.inputs.max()) == 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (halved, r"made \[2, 1, 3, 3\], torch.uint8 of \[4, 1, 3, 3\], torch.uint8; expected the same"),
        (scaled, r"made \[4, 1, 3, 3\], torch.float32 of"),
        (nothing, "changed no calibration row"),
        (broken, "failed: ValueError: no patch"),
    ],
)
def test_a_function_that_makes_no_triggered_rows_is_refused(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        trigger.load(f"{HERE}:{function.__name__}", "b", splits())


def test_an_unknown_target_and_an_unknown_function_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="--target is 'd'; expected a class of rows: a, b, c"):
        trigger.load(f"{HERE}:corner", "d", splits())
    with pytest.raises(InvalidConfig, match=f"--trigger is '{HERE}:patch'"):
        trigger.load(f"{HERE}:patch", "b", splits())
