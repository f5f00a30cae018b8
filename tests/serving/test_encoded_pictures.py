"""PNG and JPEG in BYTES, against a real server: the answer is that of the raw pixels; what is none is refused."""

import io
import struct
import zlib
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from PIL import Image

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.bytes_tensor import pack
from serving.decoder import Decoder
from serving.errors import DeadlineExceeded, Overloaded
from tests import tiny_ensemble
from tests.server_process import ServerProcess

PIXELS = np.random.default_rng(0).integers(0, 4, (3, 1, 2, 2), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[0]).save(file, "PNG")
    return file.getvalue()


ENCODED = [png(pixels) for pixels in PIXELS]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GRPCInferenceServiceStub]:
    directory = tmp_path_factory.mktemp("pictures") / "tiny"
    tiny_ensemble.write(directory, datatype="UINT8", row_shape=(1, 2, 2))
    with (
        ServerProcess(directory, "--max-picture-pixels", "100000", "--max-batch-rows", "8") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        yield GRPCInferenceServiceStub(channel)


def request(shape: list[int], raw: bytes | None = None, typed: list[bytes] | None = None) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="tiny")
    tensor = message.inputs.add(name="input", datatype="BYTES", shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    if typed is not None:
        tensor.contents.bytes_contents.extend(typed)
    return message


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_raw_and_typed_pictures_are_answered_as_their_pixels(stub: GRPCInferenceServiceStub, shape: list[int]) -> None:
    for message in (request(shape, raw=pack(ENCODED)), request(shape, typed=ENCODED)):
        response = stub.ModelInfer(message, timeout=30)
        probs = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(3, 3)
        np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(PIXELS), atol=1e-6)


def test_the_metadata_says_that_pictures_are_taken(stub: GRPCInferenceServiceStub, tiny_server: ServerProcess) -> None:
    name = oip.ModelMetadataRequest(name="tiny")
    assert stub.ModelMetadata(name, timeout=30).properties["pictures"] == "PNG,JPEG"
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        other = GRPCInferenceServiceStub(channel)
        assert other.ModelMetadata(name, timeout=30).properties["pictures"] == ""
        with pytest.raises(grpc.RpcError) as caught:
            other.ModelInfer(request([3], raw=pack(ENCODED)), timeout=30)
    assert "input 'input' is BYTES; the model takes FP32" in (caught.value.details() or "")


LARGE = png(np.random.default_rng(1).integers(0, 256, (1, 400, 200), np.uint8))  # 80,000 pixels


def bomb(width: int, height: int) -> bytes:
    """A small picture whose header says that it is a large one."""
    header = b"IHDR" + struct.pack(">II", width, height) + ENCODED[0][24:29]
    return ENCODED[0][:12] + header + struct.pack(">I", zlib.crc32(header)) + ENCODED[0][33:]


@pytest.mark.parametrize(
    ("message", "details"),
    [
        (request([1], raw=pack([b"hello"])), "picture 0: 5 bytes that are no PNG or JPEG"),
        (request([2], raw=pack([ENCODED[0], LARGE[: len(LARGE) // 2]])), "picture 1: "),
        (request([1], raw=pack([bomb(9000, 9000)])), "picture 0: more than 100000 pixels in the request with this one"),
        (
            request([1], raw=pack([bomb(2**31 - 1, 2**31 - 1)])),
            "picture 0: 71 bytes that are no PNG or JPEG: Image size",
        ),
        (request([1], raw=pack([bomb(1000, 101)])), "picture 0: more than 100000 pixels in the request with this one"),
        (request([1], raw=pack([bomb(1000, 100)])), "picture 0: "),
        (request([2], raw=pack([LARGE, LARGE])), "picture 1: more than 100000 pixels in the request with this one"),
        (request([2], raw=pack(ENCODED)), "bytes are left after 2 elements"),
        (request([4], raw=pack(ENCODED)), "bytes end after 3 elements; expected 4"),
        (request([1], raw=struct.pack("<I", 2**32 - 1) + b"x"), "element 0 says it has 4294967295 bytes; 1 are left"),
        (request([1], raw=b"abc"), "3 bytes end after 0 elements"),
        (request([4], typed=ENCODED), "has 3 values in bytes_contents; [4] is 4"),
        (request([3]), "has 0 values in bytes_contents; [3] is 3"),
        (request([3], raw=pack(ENCODED), typed=ENCODED), "came with raw and with typed contents"),
        (request([9], raw=b""), "has 9 rows; this server takes 8 at most in a request"),
        (request([2**63 - 1], raw=b""), "rows; this server takes 8 at most in a request"),
        (request([3, 2], raw=pack(ENCODED)), "is BYTES [3, 2]; pictures are [B] or [B, 1]"),
        (request([3, 1, 1], raw=pack(ENCODED)), "is BYTES [3, 1, 1]; pictures are [B] or [B, 1]"),
        (request([0], raw=b""), "is BYTES [0]; pictures are [B] or [B, 1]"),
        (request([-1], raw=pack(ENCODED)), "is BYTES [-1]; pictures are [B] or [B, 1]"),
        (request([], raw=pack(ENCODED)), "is BYTES []; pictures are [B] or [B, 1]"),
    ],
)
def test_what_is_no_picture_is_refused(
    stub: GRPCInferenceServiceStub, message: oip.ModelInferRequest, details: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details in (caught.value.details() or "")
    assert len(stub.ModelInfer(request([3], raw=pack(ENCODED)), timeout=30).outputs) == 3


async def test_the_decoder_refuses_what_it_has_no_room_for_and_what_has_expired() -> None:
    decoder = Decoder(max_pixels=100, threads=1, max_waiting=3)
    with pytest.raises(Overloaded, match="4 pictures arrived with 0 waiting; the decoder holds 3"):
        await decoder.decode([ENCODED[0]] * 4, (1, 2, 2), None)
    with pytest.raises(DeadlineExceeded, match="0 of 3 pictures decoded"):
        await decoder.decode(ENCODED, (1, 2, 2), deadline=0.0)
    for _ in range(3):  # whatever came of the others, there is room again
        np.testing.assert_array_equal(await decoder.decode(ENCODED, (1, 2, 2), None), PIXELS)
    decoder.close()
