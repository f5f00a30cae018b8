import pytest

from trainer.schedule import step_down, triangular


def test_every_rate_of_two_cycles_is_algorithm_1s() -> None:
    # c = 4, α1 = 1, α2 = 0.2: t(i) = 1/4, 1/2, 3/4, 1, then again.
    rates = [triangular(i, 4, 1.0, 0.2) for i in range(1, 9)]
    assert rates == pytest.approx([0.6, 0.2, 0.6, 1.0, 0.6, 0.2, 0.6, 1.0], abs=1e-15)
    # c = 6, α1 = 0.05, α2 = 0.0005: thirds down, thirds up.
    d = (0.05 - 0.0005) / 3
    cycle = [0.05 - d, 0.05 - 2 * d, 0.0005, 0.0005 + d, 0.0005 + 2 * d, 0.05]
    assert [triangular(i, 6, 0.05, 0.0005) for i in range(1, 13)] == pytest.approx(cycle * 2, abs=1e-15)


@pytest.mark.parametrize("c", [2, 4, 10, 704])
def test_the_least_rate_is_exactly_alpha_2_at_half_a_cycle(c: int) -> None:
    rates = {i: triangular(i, c, 0.05, 5e-4) for i in range(1, 2 * c + 1)}
    least = [i for i, rate in rates.items() if rate == min(rates.values())]
    assert least == [c // 2, c + c // 2]
    assert rates[c // 2] == 5e-4


@pytest.mark.parametrize(("i", "c"), [(0, 4), (1, 3), (1, 0)])
def test_a_cycle_that_cannot_be_is_refused(i: int, c: int) -> None:
    with pytest.raises(ValueError, match="c even"):
        triangular(i, c, 1.0, 0.1)


def test_endpoint_rate_is_constant_then_linear_then_one_percent() -> None:
    assert [step_down(p, 0.1) for p in (0.0, 0.25, 0.5)] == [0.1, 0.1, 0.1]
    assert step_down(0.7, 0.1) == pytest.approx(0.1 * (1 + 0.01) / 2)
    assert [step_down(p, 0.1) for p in (0.9, 0.95, 0.999)] == pytest.approx([0.001] * 3)
