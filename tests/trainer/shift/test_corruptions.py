"""Each kind against a closed form, and what all of them keep."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from trainer.shift import corruptions, report
from trainer.shift.corruptions import KINDS, SEVERITIES, Kind, corrupt

pytestmark = pytest.mark.usefixtures("one_thread")
BY_NAME = {kind.name: kind for kind in KINDS}


def pictures(rows: int, channels: int, height: int, width: int) -> Tensor:
    """uint8, smooth, and with colours: what blur, noise and shifts of colour all change."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(rows, channels, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine * 255).to(torch.uint8)


def applied(name: str, images: Tensor, strength: float) -> Tensor:
    """Of pictures in [0, 1], with fixed draws."""
    torch.manual_seed(0)
    return BY_NAME[name].apply(images, strength)


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 32, 32), (3, 5, 9), (1, 2, 2)])
def test_pictures_of_any_size_stay_bytes_of_their_size(size: tuple[int, int, int]) -> None:
    inputs = pictures(3, *size)
    kinds, absent = corruptions.applicable(inputs)
    assert len(kinds) + len(absent) == len(KINDS)
    for kind in kinds:
        for severity in (1, SEVERITIES):
            found = corrupt(inputs, kind, severity, 0)
            assert found.dtype == torch.uint8, kind.name
            assert found.shape == inputs.shape, kind.name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_pictures_are_further_from_the_clean_ones_with_every_severity(kind: Kind) -> None:
    inputs = pictures(40, 3, 24, 32)
    away = [
        float((corrupt(inputs, kind, severity, 0).double() - inputs).square().mean())
        for severity in range(1, SEVERITIES + 1)
    ]
    assert away[0] > 0
    assert all(a < b for a, b in pairwise(away)), away


def test_equal_seeds_give_equal_pictures_others_do_not_and_nobody_elses_draws_move() -> None:
    inputs = pictures(4, 1, 12, 12)
    state = torch.get_rng_state()
    random = ("gaussian noise", "shot noise", "impulse noise", "motion blur", "elastic", "rotation", "translation")
    for kind in KINDS:
        first, again, other = (corrupt(inputs, kind, 5, seed) for seed in (0, 0, 1))
        assert torch.equal(first, again), kind.name
        assert torch.equal(first, other) == (kind.name not in random), kind.name
    assert torch.equal(torch.get_rng_state(), state)


def test_chunks_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, kind = pictures(7, 1, 8, 8), BY_NAME["contrast"]
    whole = corrupt(inputs, kind, 3, 0)
    monkeypatch.setattr(corruptions, "CHUNK_ROWS", 2)
    assert torch.equal(corrupt(inputs, kind, 3, 0), whole)


@pytest.mark.parametrize(
    ("name", "strength"),
    [("motion blur", 0.0), ("zoom blur", 1.0), ("brightness", 0.0), ("contrast", 1.0), ("saturation", 1.0),
     ("pixelate", 1.0), ("elastic", 0.0), ("rotation", 0.0), ("translation", 0.0), ("gaussian noise", 0.0)],
)  # fmt: skip
def test_at_no_strength_nothing_changes(name: str, strength: float) -> None:
    images = pictures(3, 3, 8, 12) / 255
    torch.testing.assert_close(applied(name, images, strength), images, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "name",
    ["gaussian blur", "motion blur", "zoom blur", "contrast", "saturation",
     "pixelate", "elastic", "rotation", "translation"],
)  # fmt: skip
def test_what_moves_or_mixes_pixels_leaves_an_even_picture_alone(name: str) -> None:
    images = torch.full((2, 3, 9, 9), 0.4)
    found = applied(name, images, BY_NAME[name].strengths[-1])
    torch.testing.assert_close(found, images, rtol=0, atol=1e-4)  # torchvision's weights of colours sum to 0.9999


def test_noise_has_the_variance_of_its_law() -> None:
    images = torch.full((10, 1, 100, 100), 0.4)
    assert float(applied("gaussian noise", images, 0.1).std()) == pytest.approx(0.1, rel=0.02)
    shot = applied("shot noise", images, 50)
    assert float(shot.mean()) == pytest.approx(0.4, rel=0.01)
    assert float(shot.std()) == pytest.approx(math.sqrt(0.4 / 50), rel=0.02)
    impulses = applied("impulse noise", images, 0.1)
    for value in (0.0, 1.0):
        assert float((impulses == value).double().mean()) == pytest.approx(0.05, rel=0.05)


def test_a_quarter_turn_is_a_quarter_turn_to_either_side() -> None:
    images = pictures(12, 3, 8, 8) / 255
    sides = [torch.rot90(images, turns, (2, 3)) for turns in (1, -1)]
    found = applied("rotation", images, 90)
    to = [[torch.allclose(one, side[i], atol=1e-5) for side in sides] for i, one in enumerate(found)]
    assert all(sum(either) == 1 for either in to)
    assert any(left for left, _ in to)
    assert any(right for _, right in to)


def test_a_whole_pixel_to_the_left_repeats_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(2, 1, 6, 8) / 255
    monkeypatch.setattr(corruptions, "_directions", lambda count: torch.tensor([[1.0, 0.0]]).expand(count, 2))
    expected = torch.cat([images[..., 1:], images[..., -1:]], dim=-1)
    torch.testing.assert_close(applied("translation", images, 1 / 8), expected, rtol=0, atol=1e-6)


def test_motion_spreads_a_point_over_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(1, 1, 9, 9)
    images[..., 4, 4] = 1.0
    monkeypatch.setattr(corruptions, "_directions", lambda count: torch.tensor([[0.0, 1.0]]).expand(count, 2))
    column = applied("motion blur", images, 4.0)[0, 0, :, 4]
    assert float(column.sum()) == pytest.approx(1.0, abs=1e-5)
    assert column[[1, 7]].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert float(column[2:7].min()) > 0


@pytest.mark.parametrize("side", [8, 28])
def test_an_elastic_picture_is_displaced_by_the_share_that_it_says(side: int) -> None:
    """A picture of coordinates shows where each pixel came from."""
    axis = (torch.arange(side) + 0.5) / side
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))[None].repeat(40, 1, 1, 1)
    coordinates = torch.cat([coordinates, coordinates[:, :1]], 1)  # of three channels
    moved = (applied("elastic", coordinates, 0.02) - coordinates)[
        :, :2, 2:-2, 2:-2
    ]  # the edge cannot come from outside
    assert float(moved.square().sum(1).mean().sqrt()) == pytest.approx(0.02, rel=0.15)


def test_blur_counts_pixels_of_small_pictures_and_shares_of_large_ones() -> None:
    for height, width, deviation in ((16, 16, 1.0), (64, 80, 2.0)):
        images = torch.zeros(1, 1, height, width)
        images[..., height // 2, width // 2] = 1.0
        column = applied("gaussian blur", images, 1.0)[0, 0].sum(1)
        place = torch.arange(height) - height // 2
        assert float((column * place**2).sum()) == pytest.approx(deviation**2, rel=0.03)


def test_colours_and_light_change_as_they_say() -> None:
    images = pictures(2, 3, 8, 8) / 255
    torch.testing.assert_close(applied("brightness", images, 0.2), images + 0.2)
    grey = applied("saturation", images, 0.0)
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    (one,) = (images[:1, :1],)
    torch.testing.assert_close(applied("contrast", one, 0.5), one.mean() + 0.5 * (one - one.mean()))


def test_worse_jpegs_and_coarser_pixels_hold_less() -> None:
    inputs = pictures(1, 1, 32, 32)
    coarse = BY_NAME["pixelate"].apply(inputs / 255, 0.25)
    assert len(coarse.unique()) <= 64
    jpegs = [BY_NAME["jpeg"].apply(inputs / 255, quality) * 255 for quality in (100, 5)]
    assert float((jpegs[0] - inputs).abs().max()) <= 2 < float((jpegs[1] - inputs).abs().max())


def test_what_does_not_apply_is_left_out_and_said_so() -> None:
    grey, absent = corruptions.applicable(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert absent == {"saturation": "the pictures are grey"}
    assert "saturation" not in {kind.name for kind in grey}
    for rows in (torch.zeros(2, 4), torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 8, 8, dtype=torch.uint8)):
        kinds, absent = corruptions.applicable(rows)
        assert not kinds
        assert f"the rows are {rows.dtype} {list(rows.shape[1:])}" in absent["corruptions"]


def test_the_documented_table_is_the_codes() -> None:
    from tests.test_readme import ROOT

    text = (ROOT / "docs" / "uncertainty.md").read_text()
    _, lines = report.kinds_table([kind.name for kind in KINDS])
    assert len(lines) == len(KINDS)
    for cells in lines:
        assert f"| {' | '.join(cells)} |" in text
