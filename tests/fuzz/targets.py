"""What bytes from outside may do: be taken, or be refused with the error that is documented. Anything else escapes."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from protos.graph import DATATYPES
from protos.open_inference_grpc_pb2 import ModelInferRequest
from protos.validate import InvalidEnsemble, validate
from serving import pictures, request
from serving.conformal import Conformal
from serving.errors import InvalidRequest
from serving.networks.curve import NoCurve
from serving.outputs import FULL
from serving.policy import Policy
from serving.ports import rest_messages
from tests import tiny_ensemble

CORPUS = Path(__file__).parent / "corpus"
MEMORY = Path("/dev/shm")
MAX_ROWS = 8

Target = Callable[[bytes], bool]  # whether the bytes were taken


def _model(datatype: str, row_shape: tuple[int, ...]) -> Any:
    """All that `request.parse` looks at."""
    return SimpleNamespace(
        input_name="input",
        input_datatype=datatype,
        input_shape=row_shape,
        class_labels=["a", "b", "c"],
        member_ids=["first", "second", "curve-0.25"],
        curve=NoCurve("there is none"),
        cascade=None,
        conformal=Conformal(tiny_ensemble.manifest(1).conformal),
        disclosure=FULL,
    )


MODELS = [_model("FP32", (4,)), _model("UINT8", (1, 2, 2)), _model("INT64", (3,)), _model("FP16", (2, 2))]


def decode_request(data: bytes) -> bool:
    """A message as the wire brings it."""
    try:
        message = ModelInferRequest.FromString(data)
    except DecodeError:
        return False
    return parse(message)


def decode_http(data: bytes) -> bool:
    """A body over HTTP: JSON, and behind a 0, which no JSON holds, the contents of tensors."""
    text, zero, contents = data.partition(b"\0")
    try:
        message, wanted = rest_messages.request("tiny", "", text + contents, len(text) if zero else None)
    except InvalidRequest:
        return False
    assert isinstance(wanted.binary("probs"), bool)
    return parse(message)


def parse(message: ModelInferRequest) -> bool:
    """By models of several datatypes, one of which takes pictures. Whether one of them takes the message."""
    taken = False
    for model in MODELS:
        try:
            parsed = request.parse(message, model, MAX_ROWS, None)
        except InvalidRequest:
            continue
        taken = True
        assert 1 <= parsed.rows <= MAX_ROWS
        assert parsed.choice.policy in Policy
        assert all(0 <= member < 3 for member in parsed.choice.members)
        assert parsed.timeout_s is None or parsed.timeout_s > 0
        if parsed.inputs is None:
            _decode(parsed.pictures, model.input_shape)
        else:
            assert parsed.inputs.shape == (parsed.rows, *model.input_shape)
            assert parsed.inputs.dtype == DATATYPES[model.input_datatype]
            assert np.isfinite(parsed.inputs).all()
    return taken


def _decode(encoded: tuple[bytes, ...], row_shape: tuple[int, ...]) -> None:
    for each in encoded:
        try:
            pixels = pictures.decode(each, row_shape, max_pixels=2**16)
        except pictures.NotAPicture:
            continue
        assert pixels.shape == row_shape
        assert pixels.dtype == np.uint8


@contextmanager
def manifest_reader() -> Iterator[Target]:
    """A manifest beside the files of a good ensemble."""
    # In memory where it can be: thousands of files a second.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        directory = Path(folder) / "tiny"
        tiny_ensemble.write(directory)

        def read_manifest(data: bytes) -> bool:
            (directory / "manifest.json").write_bytes(data)
            try:
                stored = validate(directory)
            except InvalidEnsemble:
                return False
            assert stored.manifest.members
            return True

        yield read_manifest


@contextmanager
def always(target: Target) -> Iterator[Target]:
    yield target


TARGETS = {
    "request": lambda: always(decode_request),
    "http": lambda: always(decode_http),
    "manifest": manifest_reader,
}
