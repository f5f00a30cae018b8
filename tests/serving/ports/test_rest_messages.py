"""Whatever a body holds, it becomes a message or an InvalidRequest; bytes survive packing."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protos import open_inference_grpc_pb2 as oip
from serving.bytes_tensor import pack, unpack
from serving.errors import InvalidRequest
from serving.ports import rest_messages

FEW = settings(max_examples=300, deadline=None, derandomize=True)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
DATATYPES = st.sampled_from(["FP32", "UINT8", "INT64", "BOOL", "BYTES", "FP16", "nonsense"])
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=5) | JSON,
        "datatype": DATATYPES | JSON,
        "shape": st.lists(st.integers(-2, 2**66), max_size=4) | JSON,
        "data": st.lists(st.integers(-300, 300) | st.floats(), max_size=6) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 20) | JSON}) | JSON,
    },
)
OUTPUT = st.fixed_dictionaries({}, optional={"name": st.text(max_size=5), "parameters": JSON})
BODY = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=5) | JSON,
        "parameters": st.dictionaries(st.text(max_size=8), JSON, max_size=3) | JSON,
        "inputs": st.lists(TENSOR, max_size=2) | JSON,
        "outputs": st.lists(OUTPUT, max_size=2) | JSON,
    },
)


@FEW
@given(said=BODY | JSON, rest=st.binary(max_size=20), length=st.none() | st.integers(-5, 500))
@example(said={"inputs": [{"data": ["\ud800"], "datatype": "BYTES"}]}, rest=b"", length=None)
def test_any_json_is_a_message_or_refused(said: Any, rest: bytes, length: int | None) -> None:
    text = json.dumps(said).encode()
    for json_bytes in (length, len(text)):
        try:
            message, wanted = rest_messages.request("m", "", text + rest, json_bytes)
        except InvalidRequest:
            continue
        assert isinstance(message, oip.ModelInferRequest)
        behind = 0 if json_bytes is None else len(text + rest) - json_bytes
        assert sum(map(len, message.raw_input_contents)) == behind
        assert wanted.binary("probs") in (True, False)


@FEW
@given(body=st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert not rest_messages.request("m", "", body, None)[0].raw_input_contents


@FEW
@given(elements=st.lists(st.binary(max_size=9), max_size=5), extra=st.binary(min_size=1, max_size=3))
def test_bytes_survive_packing_and_nothing_else_passes_for_them(elements: list[bytes], extra: bytes) -> None:
    packed = pack(elements)
    assert unpack(packed, len(elements)) == elements
    for data, count in ((packed + extra, len(elements)), (packed[:-1], len(elements)), (packed, len(elements) + 1)):
        if data or count:
            with pytest.raises(ValueError, match="bytes"):
                unpack(data, count)
