"""From a picture to the row that a network of images takes, as the trainer makes rows of a folder's pictures.

Converted to grey (L) or colour (RGB, an alpha channel is dropped); then, unless it has the size already, scaled
bilinearly until it just covers the network's height and width, and the middle cut out; channels first, uint8, 0 … 255.
EXIF orientation is ignored, of an animation the first frame taken.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MODES = {1: "L", 3: "RGB"}  # by channels
MAX_PIXELS = 2**25  # of one picture: 32 million
# Of a progressive JPEG, which has about ten. Each is a pass over all pixels and may take 33 bytes: hours in a message.
MOST_SCANS = 64


class NotAPicture(ValueError):
    """What is wrong with it, in one line."""


def takes_pictures(datatype: str, row_shape: tuple[int, ...]) -> bool:
    """Whether a row is raw pixels, channels first, grey or colour."""
    return datatype == "UINT8" and len(row_shape) == 3 and row_shape[0] in MODES


def decode(encoded: bytes, row_shape: tuple[int, ...], max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """uint8 [C, H, W] of a PNG or JPEG. Raises NotAPicture; a picture of too many pixels is not even decoded."""
    with _opened(encoded) as image:
        check_pixels(image.width, image.height, max_pixels)
        return to_row(image, row_shape, max_pixels)


def pixels(encoded: bytes) -> int:
    """Of a PNG or JPEG, from its header alone. Raises NotAPicture."""
    with _opened(encoded) as image:
        return image.width * image.height


@contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """Whatever happens to it while it is open, it is NotAPicture: what decoders raise on bytes from anywhere varies."""
    try:
        if encoded.startswith(b"\xff\xd8") and encoded.count(b"\xff\xda") > MOST_SCANS:
            raise NotAPicture(f"a JPEG of more than {MOST_SCANS} scans")
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            yield image
    except NotAPicture:
        raise
    except Exception as error:
        raise NotAPicture(f"{len(encoded)} bytes that are no PNG or JPEG: {str(error)[:100]}") from None


def to_row(image: Image.Image, row_shape: tuple[int, ...], max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """uint8 [C, H, W]. Raises NotAPicture for a shape so extreme that scaling it would need too many pixels."""
    channels, height, width = row_shape
    if image.mode[0] in "IF":  # Pillow would not scale their range but clip it
        raise NotAPicture(f"a picture of mode {image.mode}, more than 8 bits; expected 8")
    converted = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    if converted.size != (width, height):
        # As torchvision's Resize and CenterCrop, to the pixel.
        if converted.width * height >= converted.height * width:
            scaled = max(width, int(height * converted.width / converted.height)), height
        else:
            scaled = width, max(height, int(width * converted.height / converted.width))
        check_pixels(*scaled, max_pixels)
        left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
        converted = converted.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    array = np.asarray(converted).reshape(height, width, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(array)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise NotAPicture(f"a picture of {width} × {height} pixels; expected at most {max_pixels} pixels")
