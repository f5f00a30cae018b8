import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.networks.engines.buckets import fitting, sizes


@pytest.mark.parametrize(
    ("max_rows", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (64, [1, 2, 4, 8, 16, 32, 64]), (5, [1, 2, 4, 5])]
)
def test_sizes_double_up_to_the_largest_batch(max_rows: int, expected: list[int]) -> None:
    assert sizes(max_rows) == expected


@given(max_rows=st.integers(1, 5000), data=st.data())
def test_every_batch_fits_and_less_than_half_of_it_is_padding(max_rows: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, max_rows))
    size = fitting(sizes(max_rows), rows)
    assert rows <= size <= max_rows
    assert size < 2 * rows


def test_more_rows_than_the_largest_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rows came; this engine was made for 8 at most"):
        fitting(sizes(8), 9)
