"""`thalweg-predict`: sends image files or .npy arrays, prints classes, probabilities and uncertainty."""

import argparse
import sys
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from protos.graph import DATATYPES
from serving.client import Answer, Client, Model


class InvalidInput(Exception):
    pass


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if the server refused or cannot be reached; 2 for a file that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        with Client(options.target, options.model, options.timeout) as client:
            model = client.model()
            rows = [(label, row) for path in options.files for label, row in _rows(path, model)]
            inputs = np.stack([row for _, row in rows])
            answer = client.predict(inputs, policy=options.policy, members=options.members)
    except (InvalidInput, OSError) as error:
        print(f"thalweg-predict: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except grpc.RpcError as error:
        print(f"thalweg-predict: {options.target} answered {error.code().name}: {error.details()}", file=sys.stderr)  # noqa: T201
        return 1
    Console(highlight=False).print(_table([label for label, _ in rows], answer, model, options.top))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thalweg-predict", description="Asks a running thalweg-serve.")
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="an image, or .npy of one row or of [B, ...]"
    )
    parser.add_argument("--target", default="127.0.0.1:8001", help="HOST:PORT of the server (default %(default)s)")
    parser.add_argument("--model", required=True, help="the model's name")
    parser.add_argument("--policy", choices=("mean", "random", "members"))
    parser.add_argument("--members", type=_members, metavar="I,J,…", help="indices of the members that should answer")
    parser.add_argument("--top", type=_positive, default=3, help="classes to print for each row (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds (default %(default)s)")
    return parser


def _members(text: str) -> list[int]:
    try:
        return [int(index) for index in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}'; expected indices such as 0,3") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}'; expected 1 or more")
    return int(text)


def _rows(path: Path, model: Model) -> list[tuple[str, NDArray[np.generic]]]:
    """The file's rows, labelled."""
    if path.suffix != ".npy":
        return [(path.name, _image(path, model))]
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise InvalidInput(f"'{path}' is not an array file: {error}") from None
    if array.shape == model.input_shape:
        array = array[None]
    if array.shape[1:] != model.input_shape or not len(array):
        expected = ", ".join(map(str, model.input_shape))
        raise InvalidInput(f"'{path}' is {list(array.shape)}; the model takes [{expected}] or [B, {expected}]")
    dtype = DATATYPES[model.input_datatype]
    # float64, numpy's default, may lose digits; an integer may not lose its value.
    if not np.can_cast(array.dtype, dtype, "same_kind" if dtype.kind == "f" else "safe"):
        raise InvalidInput(f"'{path}' holds {array.dtype}; the model takes {model.input_datatype}")
    return [(f"{path.name}[{i}]", row) for i, row in enumerate(array.astype(dtype))]


def _image(path: Path, model: Model) -> NDArray[np.generic]:
    """The picture as the model takes it: grey or colour, resized, channels first, raw pixels 0 … 255."""
    modes = {1: "L", 3: "RGB"}
    if len(model.input_shape) != 3 or model.input_shape[0] not in modes:
        raise InvalidInput(f"'{path}' is a picture; the model takes {list(model.input_shape)}, not [1 or 3, H, W]")
    channels, height, width = model.input_shape
    try:
        with Image.open(path) as image:
            pixels = image.convert(modes[channels])
    except UnidentifiedImageError:
        raise InvalidInput(f"'{path}' is neither a picture nor .npy") from None
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"'{path}' cannot be read as a picture: {error}") from None
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(array, DATATYPES[model.input_datatype])


def _table(labels: list[str], answer: Answer, model: Model, top: int) -> Table:
    # Names and labels come from elsewhere: what looks like markup in them is text.
    table = Table(
        title=f"{escape(model.name)}: policy {answer.policy}, members run {answer.members_run}", title_justify="left"
    )
    table.add_column("row")
    table.add_column("classes")
    table.add_column("entropy", justify="right")
    table.add_column("mutual information", justify="right")
    for label, probs, entropy, information in zip(
        labels, answer.probs, answer.entropy, answer.mutual_information, strict=True
    ):
        best = np.argsort(-probs, kind="stable")[:top]
        classes = "  ".join(f"{model.class_labels[index]} {probs[index]:.3f}" for index in best)
        table.add_row(escape(label), escape(classes), f"{entropy:.3f}", f"{information:.3f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
