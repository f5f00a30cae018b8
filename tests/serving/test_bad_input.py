"""Each kind of bad input is one case: the right code, a message that says what arrived and what was expected,
and a server that goes on. Over gRPC, against a real process."""

from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests import tiny_ensemble
from tests.server_process import ServerProcess

Request = oip.ModelInferRequest
Change = Callable[[Request], None]
ROWS = np.arange(8, dtype="<f4").reshape(2, 4)
CASES: list[tuple[str, str, str, Change]] = []


def good() -> Request:
    request = Request(model_name="tiny", raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=[2, 4])
    return request


def case(code: str, message: str) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        CASES.append((change.__name__, code, message, change))
        return change

    return register


def reshape(request: Request, shape: list[int]) -> None:
    request.inputs[0].shape[:] = shape


def type_contents(request: Request) -> oip.InferTensorContents:
    del request.raw_input_contents[:]
    return request.inputs[0].contents


@case("INVALID_ARGUMENT", "unknown input 'pixels'; the model takes 'input'")
def wrong_input_name(request: Request) -> None:
    request.inputs[0].name = "pixels"


@case("INVALID_ARGUMENT", "input 'input' is FP64; the model takes FP32")
def wrong_datatype(request: Request) -> None:
    request.inputs[0].datatype = "FP64"


@case("INVALID_ARGUMENT", "input 'input' is ; the model takes FP32")
def no_datatype(request: Request) -> None:
    request.inputs[0].datatype = ""


@case("INVALID_ARGUMENT", "input 'input' has 3 axes, [2, 2] …; the model takes [-1, 4]")
def wrong_rank(request: Request) -> None:
    reshape(request, [2, 2, 2])


@case("INVALID_ARGUMENT", "input 'input' has 0 axes, []; the model takes [-1, 4]")
def no_shape(request: Request) -> None:
    reshape(request, [])


@case("INVALID_ARGUMENT", "input 'input' is [4, 2]; the model takes [-1, 4]")
def wrong_shape(request: Request) -> None:
    reshape(request, [4, 2])


@case("INVALID_ARGUMENT", "input 'input' is [0, 4]; expected every axis to be 1 or more")
def zero_dimension(request: Request) -> None:
    reshape(request, [0, 4])


@case("INVALID_ARGUMENT", "input 'input' is [-2, -4]; expected every axis to be 1 or more")
def negative_dimensions(request: Request) -> None:
    reshape(request, [-2, -4])


@case("INVALID_ARGUMENT", "more elements than int64 can count")
def dimensions_that_overflow(request: Request) -> None:
    reshape(request, [2**62, 4])


@case("INVALID_ARGUMENT", "more elements than int64 can count")
def dimensions_that_wrap_to_zero(request: Request) -> None:
    reshape(request, [2**63 - 1, 2**63 - 1])


@case("INVALID_ARGUMENT", "has 31 bytes of raw contents; [2, 4] of FP32 is 32")
def one_byte_less(request: Request) -> None:
    request.raw_input_contents[0] = ROWS.tobytes()[:-1]


@case("INVALID_ARGUMENT", "has 33 bytes of raw contents; [2, 4] of FP32 is 32")
def one_byte_more(request: Request) -> None:
    request.raw_input_contents[0] = ROWS.tobytes() + b"x"


@case("INVALID_ARGUMENT", "2 raw contents came with 1 input; expected one each")
def raw_contents_without_input(request: Request) -> None:
    request.raw_input_contents.append(b"")


@case("INVALID_ARGUMENT", "came with raw and with typed contents; expected one of them")
def raw_and_typed_contents(request: Request) -> None:
    request.inputs[0].contents.fp32_contents.extend(ROWS.ravel())


@case("INVALID_ARGUMENT", "has 0 values in fp32_contents; [2, 4] is 8")
def no_contents(request: Request) -> None:
    type_contents(request)


@case("INVALID_ARGUMENT", "has 7 values in fp32_contents; [2, 4] is 8")
def too_few_typed_values(request: Request) -> None:
    type_contents(request).fp32_contents.extend(ROWS.ravel()[:-1])


@case("INVALID_ARGUMENT", "came in fp64_contents; FP32 belongs in fp32_contents")
def typed_values_in_the_wrong_field(request: Request) -> None:
    type_contents(request).fp64_contents.extend(ROWS.ravel())


@case("INVALID_ARGUMENT", "there is no input; the model takes 'input'")
def missing_input(request: Request) -> None:
    del request.inputs[:]


@case("INVALID_ARGUMENT", "2 inputs came; the model takes 'input' once")
def duplicate_input(request: Request) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


@case("INVALID_ARGUMENT", "unknown output 'logits'; expected one of probs, entropy, mutual_information, member_probs")
def unknown_output(request: Request) -> None:
    request.outputs.add(name="logits")


@case("INVALID_ARGUMENT", "output 'probs' was asked for twice; expected each output once")
def duplicate_output(request: Request) -> None:
    for _ in range(2):
        request.outputs.add(name="probs")


@case("INVALID_ARGUMENT", "3000 outputs were asked for; the model has 8")
def thousands_of_outputs(request: Request) -> None:
    for _ in range(3000):
        request.outputs.add(name="probs")


@case("INVALID_ARGUMENT", "parameter 'members' names 20001 members; the model has 4")
def thousands_of_members(request: Request) -> None:
    request.parameters["members"].string_param = "0" + ",0" * 20_000


@case("INVALID_ARGUMENT", "has 5000 axes, [1, 1] …; the model takes [-1, 4]")
def thousands_of_axes(request: Request) -> None:
    reshape(request, [1] * 5000)


@case("INVALID_ARGUMENT", "unknown input 'éééé")
def name_beyond_the_length_of_a_message(request: Request) -> None:
    request.inputs[0].name = "é" * 20_000


@case("NOT_FOUND", "unknown model '🐟🐟🐟")
def model_name_beyond_the_length_of_a_message(request: Request) -> None:
    request.model_name = "🐟" * 10_000


@case("NOT_FOUND", "unknown model 'huge'; this server has 'tiny'")
def unknown_model(request: Request) -> None:
    request.model_name = "huge"


@case("NOT_FOUND", "unknown version '2' of 'tiny'; this server has '1'")
def unknown_version(request: Request) -> None:
    request.model_version = "2"


@case("INVALID_ARGUMENT", "unknown policy 'best'; expected one of mean, members, random")
def unknown_policy(request: Request) -> None:
    request.parameters["policy"].string_param = "best"


@case("INVALID_ARGUMENT", "parameter 'policy' came as int64_param; expected string_param")
def policy_of_another_type(request: Request) -> None:
    request.parameters["policy"].int64_param = 1


@case("INVALID_ARGUMENT", "unknown parameter 'polcy'; did you mean 'policy'?")
def misspelt_parameter(request: Request) -> None:
    request.parameters["polcy"].string_param = "random"


@case("INVALID_ARGUMENT", "member 4 is out of range; expected 0 to 3")
def member_out_of_range(request: Request) -> None:
    request.parameters["members"].string_param = "0,4"


@case("INVALID_ARGUMENT", "unknown member '-1'; expected an index, 0 to 3, or an id")
def negative_member(request: Request) -> None:
    request.parameters["members"].string_param = "-1"


@case("INVALID_ARGUMENT", "parameter 'members' is '1,1'; expected each member once")
def member_twice(request: Request) -> None:
    request.parameters["members"].string_param = "1,1"


@case("INVALID_ARGUMENT", "policy 'members' came without parameter 'members'")
def members_without_members(request: Request) -> None:
    request.parameters["policy"].string_param = "members"


@case("INVALID_ARGUMENT", "parameter 'members' came with policy 'mean'; expected policy 'members'")
def members_with_another_policy(request: Request) -> None:
    request.parameters["policy"].string_param = "mean"
    request.parameters["members"].string_param = "0"


@case("INVALID_ARGUMENT", "parameter 'timeout' is -1; expected 0 or more microseconds")
def negative_timeout(request: Request) -> None:
    request.parameters["timeout"].int64_param = -1


@case("INVALID_ARGUMENT", "input 'input' holds nan in row 1; expected finite numbers")
def not_a_number(request: Request) -> None:
    rows = ROWS.copy()
    rows[1, 2] = np.nan
    request.raw_input_contents[0] = rows.tobytes()


@case("INVALID_ARGUMENT", "input 'input' holds -inf in row 0; expected finite numbers")
def infinite(request: Request) -> None:
    rows = ROWS.copy()
    rows[0, 0] = -np.inf
    request.raw_input_contents[0] = rows.tobytes()


@case("INVALID_ARGUMENT", "input 'input' holds inf in row 1; expected finite numbers")
def infinite_in_typed_contents(request: Request) -> None:
    type_contents(request).fp32_contents.extend([*ROWS.ravel()[:-1], np.inf])


@case("INVALID_ARGUMENT", "row 1: the network's logits are not finite")
def finite_but_beyond_the_networks_range(request: Request) -> None:
    rows = ROWS.copy()
    rows[1] = np.finfo(np.float32).max
    request.raw_input_contents[0] = rows.tobytes()


@case("INVALID_ARGUMENT", "input 'input' has 257 rows; this server takes 256 at most in a request")
def batch_beyond_the_maximum(request: Request) -> None:
    reshape(request, [257, 4])
    request.raw_input_contents[0] = bytes(257 * 16)


@case("RESOURCE_EXHAUSTED", "larger than max")
def message_over_the_limit(request: Request) -> None:
    request.raw_input_contents[0] = bytes(2**17)


@pytest.fixture(scope="module")
def stub(tiny_server: ServerProcess) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def check_it_goes_on(stub: GRPCInferenceServiceStub) -> None:
    response = stub.ModelInfer(good(), timeout=30)
    probs = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(2, 3)
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)


@pytest.mark.parametrize(("code", "message", "change"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input_is_refused(stub: GRPCInferenceServiceStub, code: str, message: str, change: Change) -> None:
    request = good()
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=30)
    assert caught.value.code().name == code
    assert message in caught.value.details()
    check_it_goes_on(stub)


def test_bytes_that_are_no_message_are_refused(tiny_server: ServerProcess, stub: GRPCInferenceServiceStub) -> None:
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff" * 50, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "50 bytes arrived that are no inference.ModelInferRequest"
    check_it_goes_on(stub)


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
@pytest.mark.parametrize(
    ("name", "version", "code", "message"),
    [
        ("huge", "", "NOT_FOUND", "unknown model 'huge'; this server has 'tiny'"),
        ("tiny", "7", "NOT_FOUND", "unknown version '7'"),
        ("", "", "INVALID_ARGUMENT", "the model's name is empty"),
    ],
)
def test_other_calls_refuse_unknown_models(
    stub: GRPCInferenceServiceStub, method: str, name: str, version: str, code: str, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(getattr(oip, f"{method}Request")(name=name, version=version), timeout=30)
    assert caught.value.code().name == code
    assert message in caught.value.details()


def test_the_protocols_reserved_parameters_are_accepted(stub: GRPCInferenceServiceStub) -> None:
    request = good()
    request.parameters["priority"].uint64_param = 1
    request.parameters["sequence_id"].int64_param = 5
    request.parameters["timeout"].int64_param = 30_000_000
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    assert stub.ModelInfer(request, timeout=30).model_name == "tiny"
