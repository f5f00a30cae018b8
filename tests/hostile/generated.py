"""Requests as Hypothesis makes them up, and what the documentation says must come of each.

Every part is drawn together with whether it is right, so what is expected is known by construction and not worked out
by a second copy of the server's checks.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from protos import open_inference_grpc_pb2 as oip
from protos.graph import DATATYPES

FEATURES, CLASSES, MEMBERS, MAX_ROWS = 4, 3, 4, 64
OUTPUTS = (
    "probs", "entropy", "mutual_information", "member_probs", "energy", "members_run", "prediction_set", "label",
)  # fmt: skip
POLICIES = ("mean", "members", "random", "curve", "cascade")  # what no invented policy may be called
PARAMETERS = {
    "policy", "members", "level", "timeout", "priority", "sequence_id", "sequence_start", "sequence_end", "headers",
    "binary_data_output",
}  # fmt: skip

text = st.text(max_size=20)
int64 = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(-4, 4, width=32)


@dataclass
class Case:
    request: oip.ModelInferRequest
    rows: np.ndarray
    policy: str = "mean"
    members: list[int] = field(default_factory=lambda: list(range(MEMBERS)))
    outputs: list[str] = field(default_factory=list)
    level: float = 0.9
    classification: dict[str, int] = field(default_factory=dict)
    found: bool = True  # it names a model and a version that are there
    wrong: list[str] = field(default_factory=list)  # what is wrong with it otherwise

    @property
    def code(self) -> str:
        if not self.found:
            return "NOT_FOUND"
        return "INVALID_ARGUMENT" if self.wrong else "OK"


@st.composite
def cases(draw: Any) -> Case:
    count = draw(st.integers(1, 5))
    rows = draw(numpy_st.arrays(np.float32, (count, FEATURES), elements=finite, fill=st.nothing()))
    case = Case(oip.ModelInferRequest(model_name="tiny", id=draw(text)), rows)
    _name_model(draw, case)
    _add_input(draw, case)
    _choose_policy(draw, case)
    _ask_for_outputs(draw, case)
    # Mostly one thing is wrong, and sometimes everything: a check must not rely on those before it.
    faults = draw(st.lists(st.sampled_from(FAULTS), max_size=2, unique=True))
    for fault in faults:
        fault(draw, case)
    return case


def _name_model(draw: Any, case: Case) -> None:
    case.request.model_version = draw(st.sampled_from(["", "1"]))


def _add_input(draw: Any, case: Case) -> None:
    tensor = case.request.inputs.add(name="input", datatype="FP32", shape=case.rows.shape)
    if draw(st.booleans()):
        case.request.raw_input_contents.append(case.rows.astype("<f4").tobytes())
    else:
        tensor.contents.fp32_contents.extend(case.rows.ravel())


def _choose_policy(draw: Any, case: Case) -> None:
    policy = draw(st.sampled_from([None, "mean", "members", "random", "cascade"]))
    if policy is None:
        return
    case.policy = policy
    case.request.parameters["policy"].string_param = policy
    if policy == "members":
        case.members = draw(st.lists(st.integers(0, MEMBERS - 1), min_size=1, unique=True))
        case.request.parameters["members"].string_param = draw(st.sampled_from([",", ", "])).join(
            map(str, case.members)
        )


def _ask_for_outputs(draw: Any, case: Case) -> None:
    case.outputs = draw(st.lists(st.sampled_from(OUTPUTS), unique=True))
    for name in case.outputs:
        output = case.request.outputs.add(name=name)
        if name == "probs" and (k := draw(st.integers(0, CLASSES))):
            output.parameters["classification"].int64_param = k
            case.classification[name] = k
    if "prediction_set" in case.outputs and case.policy == "members":
        case.wrong.append("sets of a policy that has no thresholds")
    if draw(st.booleans()):
        case.level = draw(st.sampled_from([0.1, 0.9, 0.95, 0.99]))
        case.request.parameters["level"].double_param = case.level


def _another_model(draw: Any, case: Case) -> None:
    case.request.model_name = draw(text.filter(lambda name: name != "tiny"))
    case.found = False


def _another_version(draw: Any, case: Case) -> None:
    case.request.model_version = draw(text.filter(lambda version: version not in ("", "1")))
    case.found = False


def _another_shape(draw: Any, case: Case) -> None:
    if case.request.inputs:
        shape = draw(st.lists(int64 | st.integers(0, 8), max_size=6).filter(lambda s: s != list(case.rows.shape)))
        case.request.inputs[0].shape[:] = shape
        case.wrong.append("shape")


def _another_datatype(draw: Any, case: Case) -> None:
    if case.request.inputs:
        other = st.sampled_from(sorted(DATATYPES)) | st.sampled_from(["BYTES", "BF16"]) | text
        case.request.inputs[0].datatype = draw(other.filter(lambda datatype: datatype != "FP32"))
        case.wrong.append("datatype")


def _another_input(draw: Any, case: Case) -> None:
    if case.request.inputs:
        case.request.inputs[0].name = draw(text.filter(lambda name: name != "input"))
        case.wrong.append("input name")


def _another_number_of_inputs(draw: Any, case: Case) -> None:
    if draw(st.booleans()):
        del case.request.inputs[:]
    elif case.request.inputs:
        case.request.inputs.append(case.request.inputs[0])
    case.wrong.append("inputs")


def _another_length(draw: Any, case: Case) -> None:
    contents: Any = case.request.raw_input_contents
    if contents:
        length = draw(st.integers(0, 200).filter(lambda size: size != case.rows.nbytes))
        contents[0] = draw(st.binary(min_size=length, max_size=length))
    elif case.request.inputs:
        values = case.request.inputs[0].contents.fp32_contents
        length = draw(st.integers(0, 30).filter(lambda size: size != len(values)))
        values[:] = [0.0] * length
    case.wrong.append("length")


def _contents_elsewhere(draw: Any, case: Case) -> None:
    if case.request.inputs:
        contents = case.request.inputs[0].contents
        contents.fp64_contents.extend(draw(st.lists(st.floats(), min_size=1, max_size=9)))
        case.wrong.append("contents of another type")


def _more_raw_contents(draw: Any, case: Case) -> None:
    case.request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=9), min_size=1, max_size=3)))
    case.wrong.append("raw contents")  # two of them, or beside typed ones


def _not_finite(draw: Any, case: Case) -> None:
    bad = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    rows = case.rows.copy()
    rows[draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, FEATURES - 1))] = bad
    if case.request.raw_input_contents:
        case.request.raw_input_contents[0] = rows.astype("<f4").tobytes()
    elif case.request.inputs:
        case.request.inputs[0].contents.fp32_contents[:] = rows.ravel()
    case.wrong.append("values")


def _too_many_rows(draw: Any, case: Case) -> None:
    if case.request.inputs:
        rows = draw(st.integers(MAX_ROWS + 1, MAX_ROWS + 40))
        case.request.inputs[0].shape[:] = [rows, FEATURES]
        case.wrong.append("rows")


def _unknown_parameter(draw: Any, case: Case) -> None:
    name = draw(text.filter(lambda name: name not in PARAMETERS and not name.startswith("triton_")))
    case.request.parameters[name].int64_param = draw(int64)
    case.wrong.append("parameter")


def _wrong_policy(draw: Any, case: Case) -> None:
    case.request.parameters["policy"].string_param = draw(text.filter(lambda name: name not in POLICIES))
    case.wrong.append("policy")


def _parameter_of_another_type(draw: Any, case: Case) -> None:
    name = draw(st.sampled_from(["policy", "timeout", "priority"]))
    if name == "policy":
        case.request.parameters[name].double_param = draw(st.floats())
    else:
        case.request.parameters[name].string_param = draw(text)
    case.wrong.append("parameter's type")


def _negative_parameter(draw: Any, case: Case) -> None:
    name = draw(st.sampled_from(["timeout", "priority"]))
    case.request.parameters[name].int64_param = draw(st.integers(-(2**63), -1))
    case.wrong.append("negative parameter")


def _wrong_level(draw: Any, case: Case) -> None:
    kind, value = draw(
        st.sampled_from(
            [("string_param", "ninety"), ("string_param", "1e-1"), ("int64_param", 0), ("bool_param", True)]
        )
        | st.floats().filter(lambda level: not 0 < level < 1).map(lambda level: ("double_param", level))
    )
    setattr(case.request.parameters["level"], kind, value)
    case.wrong.append("level")


def _wrong_members(draw: Any, case: Case) -> None:
    wrong = ["", ",", "0,0", "4", "-1", "0,1,2,3,0", "1_0", "٣", " ", "0;1", "9" * 400, "endpoint-9"]
    case.request.parameters["policy"].string_param = "members"
    case.request.parameters["members"].string_param = draw(st.sampled_from(wrong))
    case.wrong.append("members")


def _members_of_another_policy(draw: Any, case: Case) -> None:
    case.request.parameters["policy"].string_param = draw(st.sampled_from(["mean", "random"]))
    case.request.parameters["members"].string_param = "0"
    case.wrong.append("members without their policy")


def _unknown_output(draw: Any, case: Case) -> None:
    case.request.outputs.add(name=draw(text.filter(lambda name: name not in OUTPUTS)))
    case.wrong.append("output")


def _output_twice(draw: Any, case: Case) -> None:
    for _ in range(2):
        case.request.outputs.add(name=draw(st.just("entropy")))
    case.wrong.append("output twice")


def _wrong_classification(draw: Any, case: Case) -> None:
    name, k = draw(st.sampled_from([("probs", CLASSES + 1), ("probs", -1), ("probs", 2**62), ("entropy", 1)]))
    del case.request.outputs[:]
    case.request.outputs.add(name=name).parameters["classification"].int64_param = k
    case.wrong.append("classification")


FAULTS = [
    _another_model, _another_version, _another_shape, _another_datatype, _another_input, _another_number_of_inputs,
    _another_length, _contents_elsewhere, _more_raw_contents, _not_finite, _too_many_rows, _unknown_parameter,
    _wrong_policy, _wrong_level, _parameter_of_another_type, _negative_parameter, _wrong_members,
    _members_of_another_policy, _unknown_output, _output_twice, _wrong_classification,
]  # fmt: skip
