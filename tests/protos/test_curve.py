import pytest

from protos.curve import bezier, polygonal_chain

GRID = [i / 40 for i in range(41)]


@pytest.mark.parametrize("t", GRID)
def test_bezier_equals_the_closed_form_for_one_two_and_three_bends(t: float) -> None:
    u = 1 - t
    assert bezier(1, t) == pytest.approx([u**2, 2 * t * u, t**2], abs=1e-15)
    assert bezier(2, t) == pytest.approx([u**3, 3 * t * u**2, 3 * t**2 * u, t**3], abs=1e-15)
    assert bezier(3, t) == pytest.approx([u**4, 4 * t * u**3, 6 * t**2 * u**2, 4 * t**3 * u, t**4], abs=1e-15)


@pytest.mark.parametrize("t", GRID)
def test_chain_with_one_bend_equals_section_3_2_1(t: float) -> None:
    expected = [2 * (0.5 - t), 2 * t, 0] if t <= 0.5 else [0, 2 * (1 - t), 2 * (t - 0.5)]
    assert polygonal_chain(1, t) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("bends", [2, 3, 7])
@pytest.mark.parametrize("t", GRID)
def test_chain_equals_appendix_a_1(bends: int, t: float) -> None:
    n = bends
    i = next(i for i in range(n + 1) if i / (n + 1) <= t <= (i + 1) / (n + 1))
    expected = [0.0] * (n + 2)
    expected[i + 1] = (n + 1) * (t - i / (n + 1))
    expected[i] = (n + 1) * ((i + 1) / (n + 1) - t)
    assert polygonal_chain(bends, t) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("curve", [bezier, polygonal_chain])
@pytest.mark.parametrize("bends", [0, 1, 2, 5])
def test_ends_are_exactly_the_endpoints_and_coefficients_sum_to_one(curve, bends: int) -> None:  # type: ignore[no-untyped-def]
    assert curve(bends, 0.0) == [1.0, *[0.0] * (bends + 1)]
    assert curve(bends, 1.0) == [*[0.0] * (bends + 1), 1.0]
    for t in GRID:
        assert sum(curve(bends, t)) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("curve", [bezier, polygonal_chain])
@pytest.mark.parametrize(("bends", "t"), [(1, -0.01), (1, 1.01), (1, float("nan")), (-1, 0.5)])
def test_arguments_out_of_range_are_refused(curve, bends: int, t: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="expected"):
        curve(bends, t)
