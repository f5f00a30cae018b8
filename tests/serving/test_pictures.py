"""Pictures become rows as the trainer makes them; what is no picture, or too large a one, is refused."""

import io

import numpy as np
import pytest
import torchvision
from PIL import Image

from serving.pictures import NotAPicture, decode, pixels, to_row

DRAW = np.random.default_rng(0)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(8, 8), (50, 50), (31, 77), (77, 31), (9, 400), (3, 5), (8, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_another_size_is_scaled_and_cut_as_torchvision_does(size: tuple[int, int], channels: int) -> None:
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], 3)
    image = Image.fromarray(DRAW.integers(0, 256, shape, np.uint8))
    transforms = torchvision.transforms
    cut = transforms.CenterCrop(8)(transforms.Resize(8)(image))
    expected = np.asarray(cut).reshape(8, 8, channels).transpose(2, 0, 1)
    np.testing.assert_array_equal(to_row(image, (channels, 8, 8)), expected)
    np.testing.assert_array_equal(decode(png(image), (channels, 8, 8)), expected)


def test_the_middle_of_a_wide_picture_fills_a_tall_network() -> None:
    image = Image.new("L", (40, 20))
    image.paste(255, (15, 0, 25, 20))
    np.testing.assert_array_equal(to_row(image, (1, 20, 10)), np.full((1, 20, 10), 255))


def test_colour_grey_and_transparency_are_converted() -> None:
    colour = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert decode(png(colour), (3, 2, 2))[:, 0, 0].tolist() == [10, 20, 30]
    assert decode(png(colour), (1, 2, 2))[0, 0, 0] == round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)
    assert decode(png(Image.new("L", (2, 2), 7)), (3, 2, 2))[:, 1, 1].tolist() == [7, 7, 7]


def test_sixteen_bits_of_grey_are_refused_rather_than_clipped() -> None:
    with pytest.raises(NotAPicture, match="a picture of mode I;16, more than 8 bits; expected 8"):
        decode(png(Image.fromarray(np.full((8, 8), 300, np.uint16))), (1, 8, 8))


def test_a_jpeg_is_read() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(file, "JPEG", quality=95)
    row = decode(file.getvalue(), (3, 8, 8))
    assert np.abs(row.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 3
    assert pixels(file.getvalue()) == 256


@pytest.mark.parametrize("encoded", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(50)])
def test_what_is_no_picture_is_refused(encoded: bytes) -> None:
    with pytest.raises(NotAPicture, match=f"{len(encoded)} bytes that are no PNG or JPEG"):
        decode(encoded, (1, 8, 8))


def test_a_cut_picture_and_another_format_are_refused() -> None:
    image = Image.fromarray(DRAW.integers(0, 256, (100, 100), np.uint8))
    with pytest.raises(NotAPicture, match="truncated"):
        decode(png(image)[:2000], (1, 8, 8))
    file = io.BytesIO()
    image.save(file, "BMP")
    with pytest.raises(NotAPicture, match="no PNG or JPEG"):
        decode(file.getvalue(), (1, 8, 8))


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    bomb = png(Image.new("1", (20_000, 4_000)))
    assert len(bomb) < 20_000  # 80 million pixels
    with pytest.raises(NotAPicture, match="a picture of 20000 × 4000 pixels; expected at most 33554432 pixels"):
        decode(bomb, (1, 8, 8))
    assert pixels(bomb) == 80_000_000
    with pytest.raises(NotAPicture, match="a picture of 5 × 3 pixels; expected at most 14"):
        decode(png(Image.new("L", (5, 3))), (1, 8, 8), max_pixels=14)


def test_a_jpeg_of_very_many_scans_is_refused_and_a_progressive_one_is_not() -> None:
    file = io.BytesIO()
    Image.new("L", (64, 64), 100).save(file, "JPEG", progressive=True)
    progressive = file.getvalue()
    assert progressive.count(b"\xff\xda") > 1
    assert decode(progressive, (1, 8, 8)).tolist() == np.full((1, 8, 8), 100).tolist()
    last = progressive.rindex(b"\xff\xda")
    bomb = progressive[:-2] + progressive[last:-2] * 100 + progressive[-2:]
    for read in (pixels, lambda encoded: decode(encoded, (1, 8, 8))):
        with pytest.raises(NotAPicture, match="a JPEG of more than 64 scans"):
            read(bomb)


def test_a_picture_that_would_grow_too_large_before_it_is_cut_is_refused() -> None:
    line = Image.new("L", (100_000, 1))
    with pytest.raises(NotAPicture, match="a picture of 22400000 × 224 pixels"):
        to_row(line, (1, 224, 224))
