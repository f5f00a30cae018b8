import math

import pytest
import torch

from trainer.curve import KINDS, Curve


def points(count: int, size: int = 50) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(size, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bends", [0, 1, 2, 3])
def test_the_ends_are_exactly_the_endpoints(kind: str, bends: int) -> None:
    curve = Curve(kind, points(bends + 2))
    assert torch.equal(curve.point(0.0), curve.control_points[0])
    assert torch.equal(curve.point(1.0), curve.control_points[-1])
    assert curve.bends == bends


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bends", [1, 2, 4])
def test_a_curve_through_collinear_points_stays_on_their_line(kind: str, bends: int) -> None:
    first, last = (point.double() for point in points(2))
    curve = Curve.straight(kind, first, last, bends)
    for t in (0.0, 0.1, 0.37, 0.5, 0.93, 1.0):
        torch.testing.assert_close(curve.point(t), torch.lerp(first, last, t), rtol=0, atol=1e-12)
    assert curve.length() == pytest.approx(float((last - first).norm()), rel=1e-9)


def test_lengths_equal_closed_forms() -> None:
    a, b, c = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    assert Curve("polygonal-chain", [a, b, c]).length() == pytest.approx(2 * math.sqrt(5), rel=1e-9)
    assert Curve("polygonal-chain", [a, b, c, a]).length() == pytest.approx(2 * math.sqrt(5) + 2, rel=1e-9)
    # φ(t) = (2t, 4t − 4t²): a parabola, ∫ √(4 + (4 − 8t)²) dt over [0, 1].
    exact = math.sqrt(5) + math.asinh(2) / 2
    assert Curve("bezier", [a, b, c]).length() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_may_be_written_over_an_earlier_one(kind: str) -> None:
    curve = Curve(kind, points(4))
    out = curve.point(0.9)
    for t in (0.0, 0.3, 1.0):
        assert curve.point(t, out=out) is out
        assert torch.equal(out, curve.point(t))


def test_making_a_point_leaves_the_control_points_alone() -> None:
    curve = Curve("bezier", points(3))
    before = [point.clone() for point in curve.control_points]
    for t in (0.0, 0.3, 1.0):
        curve.point(t).zero_()
    for point, copy in zip(curve.control_points, before, strict=True):
        assert torch.equal(point, copy)


@pytest.mark.parametrize("bends", [0, 1, 2, 4])
def test_a_part_of_a_bezier_curve_has_its_points_at_equal_shares_of_t(bends: int) -> None:
    curve = Curve("bezier", [point.double() for point in points(bends + 2)])
    part = curve.part(0.2, 0.7)
    assert part.bends == bends
    for share in (0.0, 0.1, 0.37, 0.5, 0.93, 1.0):
        torch.testing.assert_close(part.point(share), curve.point(0.2 + share * 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_as_a_part_is_the_curve_itself(kind: str) -> None:
    curve = Curve(kind, points(4))
    for ours, theirs in zip(curve.part(0.0, 1.0).control_points, curve.control_points, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_part_of_a_chain_keeps_the_corners_within() -> None:
    chain = Curve("polygonal-chain", points(4))  # corners at 1/3 and 2/3
    assert [part.bends for part in (chain.part(0.2, 0.8), chain.part(0.2, 0.5), chain.part(0.4, 0.6))] == [2, 1, 0]
    first, corner, last = chain.part(0.2, 0.5).control_points
    assert torch.equal(corner, chain.control_points[1])
    torch.testing.assert_close((first, last), (chain.point(0.2), chain.point(0.5)), rtol=0, atol=0)
