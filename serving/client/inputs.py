"""What a user has, as rows of the model's input: arrays, pictures (PIL), files of either."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from protos.graph import DATATYPES
from serving import pictures
from serving.client.messages import Model

Source = NDArray[np.generic] | Image.Image | Path | str


class InvalidInput(Exception):
    """What arrived and what the model takes, in one line."""


def rows(source: Source | Sequence[Source], model: Model) -> NDArray[np.generic]:
    """[B, ...] in the model's datatype. Raises InvalidInput, OSError.

    An array is rows [B, ...] or, without that axis, one row; a file is a picture, or an array if its name ends in .npy.
    """
    if isinstance(source, np.ndarray):
        return _array(source, model, "the input")
    if isinstance(source, Image.Image):
        return _picture(source, model, "the input")[None]
    if isinstance(source, Path | str):
        return _file(Path(source), model)
    parts = [rows(part, model) for part in source]
    if not parts:
        raise InvalidInput("there is no input; expected one row or more")
    return np.concatenate(parts)


def _file(path: Path, model: Model) -> NDArray[np.generic]:
    if path.suffix != ".npy":
        try:
            with Image.open(path) as image:
                return _picture(image, model, f"'{path}'")[None]
        except UnidentifiedImageError:
            raise InvalidInput(f"'{path}' is neither a picture nor .npy") from None
        except FileNotFoundError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidInput(f"'{path}' cannot be read as a picture: {error}") from None
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise InvalidInput(f"'{path}' is not an array file: {error}") from None
    return _array(array, model, f"'{path}'")


def _array(array: NDArray[np.generic], model: Model, what: str) -> NDArray[np.generic]:
    if array.shape == model.input_shape:
        array = array[None]
    if array.shape[1:] != model.input_shape or not len(array):
        expected = ", ".join(map(str, model.input_shape))
        raise InvalidInput(f"{what} is {list(array.shape)}; the model takes [{expected}] or [B, {expected}]")
    dtype = DATATYPES[model.input_datatype]
    # float64, numpy's default, may lose digits; an integer may not lose its value.
    if not np.can_cast(array.dtype, dtype, "same_kind" if np.issubdtype(dtype, np.floating) else "safe"):
        raise InvalidInput(f"{what} holds {array.dtype}; the model takes {model.input_datatype}")
    return array.astype(dtype, copy=False)


def _picture(image: Image.Image, model: Model, what: str) -> NDArray[np.generic]:
    if len(model.input_shape) != 3 or model.input_shape[0] not in pictures.MODES:
        raise InvalidInput(f"{what} is a picture; the model takes {list(model.input_shape)}, not [1 or 3, H, W]")
    return pictures.to_row(image, model.input_shape).astype(DATATYPES[model.input_datatype], copy=False)
