"""Each way to break a directory is one test that it is refused, with its own violation and a telling message."""

import errno
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper

from protos.validate import InvalidEnsemble, Violation, validate
from tests import tiny_ensemble

Manifest = dict[str, Any]
Break = Callable[[Path, Manifest], None]
CASES: list[tuple[str, Violation, str, Break]] = []


def case(violation: Violation, message: str) -> Callable[[Break], Break]:
    """Registers a way to break a directory: it edits files, or the manifest, which is then written back."""

    def register(breaks: Break) -> Break:
        CASES.append((breaks.__name__, violation, message, breaks))
        return breaks

    return register


def replace_file(directory: Path, entry: Manifest, data: bytes) -> None:
    """Other contents with a matching size and hash, so that only the contents can be at fault."""
    (directory / entry["path"]).write_bytes(data)
    entry.update(sizeBytes=str(len(data)), sha256=hashlib.sha256(data).hexdigest())


DENIED: set[Path] = set()


def deny(path: Path) -> None:
    """No permission to read. Tests may run as root, who is never denied: so `os.open` and `os.scandir` are."""
    DENIED.add(path)


@pytest.fixture(autouse=True)
def denials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def denying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and Path(path) in DENIED:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *arguments, **options)

        return wrapper

    monkeypatch.setattr(os, "open", denying(os.open))
    monkeypatch.setattr(os, "scandir", denying(os.scandir))
    yield
    DENIED.clear()


def replace_graph(directory: Path, manifest: Manifest, change: Callable[[onnx.ModelProto], None]) -> None:
    model = tiny_ensemble.graph()
    change(model)
    replace_file(directory, manifest["graph"], model.SerializeToString())


def replace_tensors(directory: Path, entry: Manifest, **changed: Any) -> None:
    tensors = safetensors.numpy.load((directory / entry["file"]["path"]).read_bytes())
    for name, value in changed.items():
        tensors[name.replace("__", ".")] = value
    replace_file(directory, entry["file"], safetensors.numpy.save(tensors))


@case(Violation.MALFORMED_MANIFEST, "a key is repeated")
def repeated_key(directory: Path, manifest: Manifest) -> None:
    text = (directory / "manifest.json").read_text()
    (directory / "manifest.json").write_text(text.replace("{", '{"name": "other",', 1))
    manifest.clear()


@case(Violation.MALFORMED_MANIFEST, "not JSON")
def manifest_in_utf_16(directory: Path, manifest: Manifest) -> None:
    text = (directory / "manifest.json").read_text()
    (directory / "manifest.json").write_bytes(text.encode("utf-16"))
    manifest.clear()


@case(Violation.MALFORMED_MANIFEST, "manifest.json")
def number_beyond_all_types(directory: Path, manifest: Manifest) -> None:
    manifest["temperature"] = 10**400


@case(Violation.BAD_PATH, "'manifest.json' is not a plain file")
def manifest_that_is_a_folder(directory: Path, manifest: Manifest) -> None:
    manifest.clear()
    (directory / "manifest.json").unlink()
    (directory / "manifest.json").mkdir()


@case(Violation.BAD_PATH, "'weights/w0.safetensors' is not a plain file")
def socket_in_place_of_a_file(directory: Path, manifest: Manifest) -> None:
    (directory / "weights/w0.safetensors").unlink()
    here = Path.cwd()
    os.chdir(directory / "weights")  # a socket's path is limited to about a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("w0.safetensors")
    finally:
        os.chdir(here)


@case(Violation.BAD_PATH, "'weights/w0.safetensors' is not a plain file")
def pipe_in_place_of_a_file(directory: Path, manifest: Manifest) -> None:
    (directory / "weights/w0.safetensors").unlink()
    os.mkfifo(directory / "weights/w0.safetensors")


@case(Violation.UNREADABLE, "'weights' cannot be read")
def folder_that_cannot_be_read(directory: Path, manifest: Manifest) -> None:
    deny(directory / "weights")


@case(Violation.UNREADABLE, "'graph.onnx' cannot be read")
def file_that_cannot_be_read(directory: Path, manifest: Manifest) -> None:
    deny(directory / "graph.onnx")


@case(Violation.WRONG_SIZE, "the manifest says 18446744073709551615")
def size_beyond_all_memory(directory: Path, manifest: Manifest) -> None:
    manifest["weightSets"][0]["file"]["sizeBytes"] = str(2**64 - 1)


@case(Violation.WRONG_SIZE, "has 4398046511104 bytes; the manifest says")
def sparse_file_of_four_terabytes(directory: Path, manifest: Manifest) -> None:
    os.truncate(directory / "weights/w0.safetensors", 2**42)


@case(Violation.BAD_LABELS, "a class label is 'a\\n'; expected printable text")
def label_with_a_line_break(directory: Path, manifest: Manifest) -> None:
    manifest["classLabels"][0] = "a\n"


@case(Violation.BAD_NAME, "the id of a member is 'a\\nb'")
def id_with_a_line_break(directory: Path, manifest: Manifest) -> None:
    manifest["members"][0]["id"] = "a\nb"


@case(Violation.BAD_TEMPERATURE, "the temperature of member 'endpoint-1' is 1e-300; expected 0.001 to 1000")
def temperature_that_overflows_every_logit(directory: Path, manifest: Manifest) -> None:
    manifest["members"][1]["temperature"] = 1e-300


@case(Violation.BAD_COEFFICIENTS, "expected 1000 in size at most")
def huge_coefficients_that_cancel(directory: Path, manifest: Manifest) -> None:
    del manifest["members"][0]["endpoint"]
    manifest["members"][0]["terms"] = [
        {"weightSet": f"w{i}", "coefficient": c} for i, c in enumerate((1, 1e300, -1e300))
    ]


@case(Violation.BAD_COEFFICIENTS, "lies on a curve of 1200 bends; expected 100 at most")
def curve_with_more_bends_than_can_be_computed(directory: Path, manifest: Manifest) -> None:
    member = manifest["members"][3]
    member["curvePoint"]["bends"] = 1200
    member["terms"] = [{"weightSet": f"x{i}", "coefficient": 1 / 1202} for i in range(1202)]
    file = {"sizeBytes": "0", "sha256": ""}
    manifest["weightSets"] += [{"id": f"x{i}", "file": {"path": f"weights/x{i}", **file}} for i in range(1202)]


@case(Violation.WRONG_INPUT, "the input's shape is [-1]; expected axes of 1 or more")
def input_with_a_variable_axis(directory: Path, manifest: Manifest) -> None:
    manifest["input"]["shape"] = [-1]


@case(Violation.WRONG_INPUT, "a row of 1 GiB at most")
def input_beyond_all_memory(directory: Path, manifest: Manifest) -> None:
    manifest["input"]["shape"] = [2**31 - 1, 2**31 - 1]


@case(Violation.MALFORMED_GRAPH, "the model has local functions")
def external_data_in_a_functions_attribute(directory: Path, manifest: Manifest) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="secret")
        function = helper.make_function("local", "f", [], ["y"], [], [helper.make_opsetid("", 20)])
        function.attribute_proto.append(helper.make_attribute("a", tensor))
        model.functions.append(function)

    replace_graph(directory, manifest, change)


@case(Violation.MALFORMED_GRAPH, "uses operators of 'com.example'")
def foreign_operators(directory: Path, manifest: Manifest) -> None:
    replace_graph(directory, manifest, lambda model: model.opset_import.append(helper.make_opsetid("com.example", 1)))


@case(Violation.MALFORMED_GRAPH, "'linear.bias' is an initializer and an input")
def initializer_that_is_an_input(directory: Path, manifest: Manifest) -> None:
    value = helper.make_tensor_value_info("linear.bias", TensorProto.FLOAT, [3])
    replace_graph(directory, manifest, lambda model: model.graph.input.append(value))


@case(Violation.MALFORMED_GRAPH, "'other' is no tensor")
def input_that_is_a_sequence(directory: Path, manifest: Manifest) -> None:
    value = helper.make_tensor_sequence_value_info("other", TensorProto.FLOAT, None)
    replace_graph(directory, manifest, lambda model: model.graph.input.append(value))


@case(Violation.MALFORMED_GRAPH, "999")
def initializer_of_unknown_type(directory: Path, manifest: Manifest) -> None:
    tensor = TensorProto(name="odd", dims=[0], data_type=999)
    replace_graph(directory, manifest, lambda model: model.graph.initializer.append(tensor))


@case(Violation.WRONG_DTYPE, "expected a floating-point type")
def weight_set_that_replaces_a_shape(directory: Path, manifest: Manifest) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [1], [4]))

    replace_graph(directory, manifest, change)
    manifest["parameterNames"].append("shape")
    for entry in manifest["weightSets"]:
        replace_tensors(directory, entry, shape=np.array([4]))


@case(Violation.NO_MANIFEST, "holds no manifest.json")
def no_manifest(directory: Path, manifest: Manifest) -> None:
    manifest.clear()
    (directory / "manifest.json").unlink()


@case(Violation.MALFORMED_MANIFEST, "not JSON")
def manifest_that_is_not_json(directory: Path, manifest: Manifest) -> None:
    manifest.clear()
    (directory / "manifest.json").write_text("{")


@case(Violation.MALFORMED_MANIFEST, "not JSON")
def manifest_nested_too_deep(directory: Path, manifest: Manifest) -> None:
    manifest.clear()
    (directory / "manifest.json").write_text("[" * 100_000)


@case(Violation.MALFORMED_MANIFEST, "holds a list; expected an object")
def manifest_that_is_a_list(directory: Path, manifest: Manifest) -> None:
    manifest.clear()
    (directory / "manifest.json").write_text("[]")


@case(Violation.MALFORMED_MANIFEST, "formatVersion is None; expected 'MAJOR.MINOR'")
def manifest_without_version(directory: Path, manifest: Manifest) -> None:
    del manifest["formatVersion"]


@case(Violation.MALFORMED_MANIFEST, "surprise")
def unknown_field_in_a_known_version(directory: Path, manifest: Manifest) -> None:
    manifest["surprise"] = 1


@case(Violation.MALFORMED_MANIFEST, "temperature")
def field_of_another_type(directory: Path, manifest: Manifest) -> None:
    manifest["temperature"] = "warm"


@case(Violation.UNKNOWN_MAJOR_VERSION, "format version 2.0; this program reads 1.x")
def unknown_major_version(directory: Path, manifest: Manifest) -> None:
    manifest["formatVersion"] = "2.0"
    manifest["whatever"] = "another major may have any fields"


@case(Violation.BAD_NAME, "name is '../x'")
def name_that_is_a_path(directory: Path, manifest: Manifest) -> None:
    manifest["name"] = "../x"


@case(Violation.BAD_NAME, "version is ''")
def empty_version(directory: Path, manifest: Manifest) -> None:
    manifest["version"] = ""


@case(Violation.BAD_TASK, "CLASSIFICATION")
def no_task(directory: Path, manifest: Manifest) -> None:
    manifest["task"] = "TASK_UNSPECIFIED"


@case(Violation.BAD_LABELS, "there are 1 class labels")
def one_class(directory: Path, manifest: Manifest) -> None:
    manifest["classLabels"] = ["a"]


@case(Violation.BAD_LABELS, "class label 'a' is listed twice")
def repeated_label(directory: Path, manifest: Manifest) -> None:
    manifest["classLabels"] = ["a", "b", "a"]


@case(Violation.DUPLICATE_ID, "member 'endpoint-0' is listed twice")
def duplicate_member_id(directory: Path, manifest: Manifest) -> None:
    manifest["members"][1]["id"] = "endpoint-0"


@case(Violation.DUPLICATE_ID, "weight set 'w0' is listed twice")
def duplicate_weight_set_id(directory: Path, manifest: Manifest) -> None:
    manifest["weightSets"][1]["id"] = "w0"


@case(Violation.ZERO_MEMBERS, "no members; expected at least one")
def zero_members(directory: Path, manifest: Manifest) -> None:
    manifest["members"] = []


@case(Violation.BAD_TEMPERATURE, "the temperature of the ensemble is 0.0")
def pooled_temperature_zero(directory: Path, manifest: Manifest) -> None:
    manifest["temperature"] = 0


@case(Violation.BAD_TEMPERATURE, "the temperature of member 'endpoint-1' is -1.0")
def negative_member_temperature(directory: Path, manifest: Manifest) -> None:
    manifest["members"][1]["temperature"] = -1


@case(Violation.BAD_TEMPERATURE, "the temperature of member 'endpoint-1' is inf")
def infinite_member_temperature(directory: Path, manifest: Manifest) -> None:
    manifest["members"][1]["temperature"] = "Infinity"


@case(Violation.BAD_METRIC, "nll of the ensemble on 'test' is nan")
def metric_that_is_no_number(directory: Path, manifest: Manifest) -> None:
    manifest["metrics"][0]["nll"] = "NaN"


def robustness(**changes: object) -> list[Manifest]:
    entry = {
        "attack": "none",
        "norm": "linf",
        "epsilon": 8.0,
        "rows": 500,
        "expectedAccuracy": 0.5,
        "meanAccuracy": 0.6,
    }
    return [entry | {"allMembersAccuracy": 0.4} | changes]


@case(Violation.BAD_ROBUSTNESS, "accuracies under 'none' are [0.4, 1.5, 0.6]")
def accuracy_above_1(directory: Path, manifest: Manifest) -> None:
    manifest["robustness"] = robustness(expectedAccuracy=1.5)


@case(Violation.BAD_ROBUSTNESS, "accuracies under 'none' are [nan, 0.5, 0.6]")
def accuracy_that_is_no_number(directory: Path, manifest: Manifest) -> None:
    manifest["robustness"] = robustness(allMembersAccuracy="NaN")


@case(Violation.BAD_ROBUSTNESS, "of all members no more than the expected one")
def more_rows_that_all_members_get_right_than_one(directory: Path, manifest: Manifest) -> None:
    manifest["robustness"] = robustness(allMembersAccuracy=0.55)


@case(Violation.BAD_ROBUSTNESS, "an attack is 'none' in norm 'l7' of 8.0 on 500 rows; expected a name, linf or l2")
def attack_in_an_unknown_norm(directory: Path, manifest: Manifest) -> None:
    manifest["robustness"] = robustness(norm="l7")


@case(Violation.BAD_ROBUSTNESS, "in norm 'linf' of -1.0 on 500 rows")
def attack_of_a_negative_radius(directory: Path, manifest: Manifest) -> None:
    manifest["robustness"] = robustness(epsilon=-1.0)


@case(Violation.BAD_ROBUSTNESS, "in norm 'linf' of inf on 500 rows")
def attack_without_bounds(directory: Path, manifest: Manifest) -> None:
    manifest["robustness"] = robustness(epsilon="Infinity")


@case(Violation.BAD_ROBUSTNESS, "on 0 rows; expected a name")
def attack_on_nothing(directory: Path, manifest: Manifest) -> None:
    manifest["robustness"] = robustness(rows=0)


@case(Violation.BAD_ROBUSTNESS, "an attack is '' in norm")
def attack_without_a_name(directory: Path, manifest: Manifest) -> None:
    manifest["robustness"] = robustness(attack="")


@case(Violation.UNKNOWN_REFERENCE, "uses weight set 'w9', which the manifest does not list")
def unknown_weight_set(directory: Path, manifest: Manifest) -> None:
    manifest["members"][0]["terms"][0]["weightSet"] = "w9"


@case(Violation.UNKNOWN_REFERENCE, "uses statistics 's9', which the manifest does not list")
def unknown_statistics(directory: Path, manifest: Manifest) -> None:
    manifest["members"][0]["statistics"] = "s9"


@case(Violation.UNKNOWN_REFERENCE, "names no statistics, but the network has some")
def member_without_statistics(directory: Path, manifest: Manifest) -> None:
    manifest["members"][0]["statistics"] = ""


@case(Violation.BAD_COEFFICIENTS, "sum to 0.9; expected 1")
def coefficients_that_do_not_sum_to_one(directory: Path, manifest: Manifest) -> None:
    manifest["members"][0]["terms"][0]["coefficient"] = 0.9


@case(Violation.BAD_COEFFICIENTS, "has coefficients [nan]; expected 1000 in size at most")
def coefficient_that_is_no_number(directory: Path, manifest: Manifest) -> None:
    manifest["members"][0]["terms"][0]["coefficient"] = "NaN"


@case(Violation.BAD_COEFFICIENTS, "sum to 0.0; expected 1")
def member_without_terms(directory: Path, manifest: Manifest) -> None:
    manifest["members"][0]["terms"] = []


@case(Violation.BAD_COEFFICIENTS, "names a weight set twice")
def weight_set_twice_in_a_member(directory: Path, manifest: Manifest) -> None:
    half = {"weightSet": "w0", "coefficient": 0.5}
    manifest["members"][0]["terms"] = [half, half]


@case(Violation.BAD_COEFFICIENTS, "is an endpoint with coefficients [0.5, 0.5]; expected a single 1")
def endpoint_that_is_a_mixture(directory: Path, manifest: Manifest) -> None:
    manifest["members"][0]["terms"] = [{"weightSet": f"w{i}", "coefficient": 0.5} for i in range(2)]


@case(Violation.BAD_COEFFICIENTS, "its curve at t = 0.5 has [0.25, 0.5, 0.25]")
def curve_coefficients_of_another_t(directory: Path, manifest: Manifest) -> None:
    manifest["members"][3]["curvePoint"]["t"] = 0.5


@case(Violation.BAD_COEFFICIENTS, "has 3 coefficients; a curve of 4000000000 bends has 4000000002 control points")
def curve_with_bends_that_are_not_there(directory: Path, manifest: Manifest) -> None:
    manifest["members"][3]["curvePoint"]["bends"] = 4_000_000_000


@case(Violation.BAD_COEFFICIENTS, "t = 1.5, not in [0, 1]")
def curve_point_beyond_the_end(directory: Path, manifest: Manifest) -> None:
    manifest["members"][3]["curvePoint"]["t"] = 1.5


@case(Violation.BAD_COEFFICIENTS, "curve of unknown kind")
def curve_of_unknown_kind(directory: Path, manifest: Manifest) -> None:
    manifest["members"][3]["curvePoint"]["curve"] = "CURVE_UNSPECIFIED"


@case(Violation.ABSOLUTE_PATH, "'/etc/passwd' is absolute")
def absolute_path(directory: Path, manifest: Manifest) -> None:
    manifest["weightSets"][0]["file"]["path"] = "/etc/passwd"


@case(Violation.ESCAPING_PATH, "'weights/../../x' contains '..'")
def path_out_of_the_directory(directory: Path, manifest: Manifest) -> None:
    manifest["weightSets"][0]["file"]["path"] = "weights/../../x"


@case(Violation.BAD_PATH, "expected parts of letters")
def path_with_other_characters(directory: Path, manifest: Manifest) -> None:
    manifest["weightSets"][0]["file"]["path"] = "weights\\w0.safetensors"


@case(Violation.BAD_PATH, "'': expected parts")
def empty_path(directory: Path, manifest: Manifest) -> None:
    manifest["weightSets"][0]["file"]["path"] = ""


@case(Violation.DUPLICATE_PATH, "file 'weights/w1.safetensors' is listed twice")
def file_listed_twice(directory: Path, manifest: Manifest) -> None:
    manifest["weightSets"][0]["file"] = manifest["weightSets"][1]["file"]


@case(Violation.SYMLINK, "'weights/w0.safetensors' is a symbolic link")
def symlinked_file(directory: Path, manifest: Manifest) -> None:
    file = directory / "weights/w0.safetensors"
    outside = directory.parent / "outside"
    file.rename(outside)
    file.symlink_to(outside)


@case(Violation.SYMLINK, "'weights' is a symbolic link")
def symlinked_folder(directory: Path, manifest: Manifest) -> None:
    (directory / "weights").rename(directory.parent / "outside")
    (directory / "weights").symlink_to(directory.parent / "outside")


@case(Violation.HARD_LINK, "'weights/w0.safetensors' has another name outside of the directory")
def hard_link_from_outside(directory: Path, manifest: Manifest) -> None:
    file = directory / "weights/w0.safetensors"
    file.rename(directory.parent / "outside")
    file.hardlink_to(directory.parent / "outside")


@case(Violation.SYMLINK, "'manifest.json' is a symbolic link")
def symlinked_manifest(directory: Path, manifest: Manifest) -> None:
    manifest.clear()
    (directory / "manifest.json").rename(directory.parent / "outside")
    (directory / "manifest.json").symlink_to(directory.parent / "outside")


@case(Violation.MISSING_FILE, "'statistics/s1.safetensors' is in the manifest but not in the directory")
def missing_file(directory: Path, manifest: Manifest) -> None:
    (directory / "statistics/s1.safetensors").unlink()


@case(Violation.EXTRA_FILE, "'weights/.notes' is in the directory but not in the manifest")
def extra_file(directory: Path, manifest: Manifest) -> None:
    (directory / "weights/.notes").write_text("x")


@case(Violation.WRONG_SIZE, "bytes; the manifest says")
def truncated_file(directory: Path, manifest: Manifest) -> None:
    file = directory / "weights/w0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@case(Violation.WRONG_SIZE, "bytes; the manifest says")
def longer_file(directory: Path, manifest: Manifest) -> None:
    with (directory / "weights/w0.safetensors").open("ab") as file:
        file.write(b"x")


@case(Violation.WRONG_HASH, "has SHA-256")
def flipped_bit(directory: Path, manifest: Manifest) -> None:
    file = directory / "weights/w0.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@case(Violation.MALFORMED_GRAPH, "not an ONNX model")
def graph_of_noise(directory: Path, manifest: Manifest) -> None:
    replace_file(directory, manifest["graph"], b"\xff" * 100)


@case(Violation.MALFORMED_GRAPH, "not a well-formed ONNX model")
def graph_with_a_dangling_edge(directory: Path, manifest: Manifest) -> None:
    replace_graph(directory, manifest, lambda model: model.graph.node[0].input.__setitem__(0, "nowhere"))


@case(Violation.MALFORMED_GRAPH, "tensor 'linear.bias' lies in another file")
def graph_with_external_data(directory: Path, manifest: Manifest) -> None:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "linear.bias")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")

    replace_graph(directory, manifest, change)


@case(Violation.MALFORMED_GRAPH, "tensor 'hidden' lies in another file")
def external_data_in_a_node(directory: Path, manifest: Manifest) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0])
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")
        model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))

    replace_graph(directory, manifest, change)


@case(Violation.WRONG_INPUT, "the graph takes 'input' float32 [-1, 4]; the manifest says 'input' float32 [-1, 5]")
def input_of_another_shape(directory: Path, manifest: Manifest) -> None:
    manifest["input"]["shape"] = [5]


@case(Violation.WRONG_INPUT, "the manifest says 'input' uint8")
def input_of_another_type(directory: Path, manifest: Manifest) -> None:
    manifest["input"]["datatype"] = "UINT8"


@case(Violation.WRONG_INPUT, "the input's datatype is 'FLOAT'")
def input_of_unknown_type(directory: Path, manifest: Manifest) -> None:
    manifest["input"]["datatype"] = "FLOAT"


@case(Violation.WRONG_OUTPUT, "expected 'logits' float32 [-1, 4]")
def more_labels_than_logits(directory: Path, manifest: Manifest) -> None:
    manifest["classLabels"].append("d")


@case(Violation.MALFORMED_TENSORS, "is not a safetensors file")
def weights_that_are_a_pickle(directory: Path, manifest: Manifest) -> None:
    replace_file(directory, manifest["weightSets"][0]["file"], b"\x80\x04K\x01.")


@case(Violation.WRONG_TENSOR_NAMES, "'weights/w0.safetensors' holds 'other'; the manifest lists 4 tensors for it")
def tensor_that_the_manifest_lacks(directory: Path, manifest: Manifest) -> None:
    replace_tensors(directory, manifest["weightSets"][0], other=np.zeros(1, np.float32))


@case(Violation.WRONG_TENSOR_NAMES, "holds 'other', which the graph does not")
def tensor_that_the_graph_lacks(directory: Path, manifest: Manifest) -> None:
    manifest["parameterNames"].append("other")
    for entry in manifest["weightSets"]:
        replace_tensors(directory, entry, other=np.zeros(1, np.float32))


@case(Violation.WRONG_TENSOR_NAMES, "'weights/w0.safetensors' lacks 'linear.bias'")
def parameter_that_no_weight_set_has(directory: Path, manifest: Manifest) -> None:
    for i, entry in enumerate(manifest["weightSets"]):
        tensors = tiny_ensemble.weights(i)
        del tensors["linear.bias"]
        replace_file(directory, entry["file"], safetensors.numpy.save(tensors))


@case(Violation.WRONG_TENSOR_NAMES, "BatchNorm reads 'bn.running_mean', which the manifest does not list")
def network_with_batchnorm_and_no_statistics(directory: Path, manifest: Manifest) -> None:
    manifest["statistics"], manifest["statisticNames"] = [], []
    for member in manifest["members"]:
        member["statistics"] = ""
    for file in (directory / "statistics").iterdir():
        file.unlink()


@case(Violation.WRONG_TENSOR_NAMES, "the manifest lists 0 parameters")
def manifest_without_parameters(directory: Path, manifest: Manifest) -> None:
    manifest["parameterNames"] = []


@case(Violation.WRONG_TENSOR_NAMES, "'weights/w1.safetensors' lacks 'linear.bias'")
def weight_sets_that_differ_in_names(directory: Path, manifest: Manifest) -> None:
    tensors = tiny_ensemble.weights(1)
    del tensors["linear.bias"]
    replace_file(directory, manifest["weightSets"][1]["file"], safetensors.numpy.save(tensors))


@case(Violation.WRONG_TENSOR_NAMES, "tensor 'bn.weight' is listed twice")
def tensor_that_is_both(directory: Path, manifest: Manifest) -> None:
    manifest["statisticNames"].append("bn.weight")
    for entry in manifest["statistics"]:
        replace_tensors(directory, entry, bn__weight=np.ones(4, np.float32))


@case(Violation.WRONG_SHAPE, "'linear.bias' in 'weights/w0.safetensors' is [4]; the graph says [3]")
def tensor_of_another_shape(directory: Path, manifest: Manifest) -> None:
    replace_tensors(directory, manifest["weightSets"][0], linear__bias=np.zeros(4, np.float32))


@case(Violation.WRONG_DTYPE, "'linear.bias' in 'weights/w0.safetensors' is float64; the graph says float32")
def tensor_of_another_type(directory: Path, manifest: Manifest) -> None:
    replace_tensors(directory, manifest["weightSets"][0], linear__bias=np.zeros(3, np.float64))


@case(Violation.NON_FINITE, "'linear.bias' in 'weights/w0.safetensors' holds a value that is not finite")
def weight_that_is_no_number(directory: Path, manifest: Manifest) -> None:
    replace_tensors(directory, manifest["weightSets"][0], linear__bias=np.array([0, np.nan, 0], np.float32))


@case(Violation.NON_FINITE, "'bn.running_var' in 'statistics/s0.safetensors'")
def infinite_statistic(directory: Path, manifest: Manifest) -> None:
    replace_tensors(directory, manifest["statistics"][0], bn__running_var=np.array([1, np.inf, 1, 1], np.float32))


@case(Violation.BAD_CASCADE, "the cascade runs 3 members; expected each of the 4 once")
def cascade_of_fewer_members(directory: Path, manifest: Manifest) -> None:
    del manifest["cascade"]["stages"][1]


@case(Violation.BAD_CASCADE, "the cascade runs 4 members; expected each of the 4 once")
def cascade_that_runs_a_member_twice(directory: Path, manifest: Manifest) -> None:
    stages = manifest["cascade"]["stages"]
    stages[1]["member"] = stages[0]["member"]


@case(Violation.BAD_CASCADE, "the cascade's threshold at 'endpoint-2' is 1.5; expected 0 to 1")
def cascade_with_an_impossible_threshold(directory: Path, manifest: Manifest) -> None:
    manifest["cascade"]["stages"][1]["threshold"] = 1.5


@case(Violation.BAD_CASCADE, "the cascade's threshold at 'endpoint-2' is nan; expected 0 to 1")
def cascade_whose_threshold_is_no_number(directory: Path, manifest: Manifest) -> None:
    manifest["cascade"]["stages"][1]["threshold"] = "NaN"


@case(Violation.BAD_CASCADE, "ends with threshold 0.5; expected 1 and 0")
def cascade_that_may_never_answer(directory: Path, manifest: Manifest) -> None:
    manifest["cascade"]["stages"][-1]["threshold"] = 0.5


@case(Violation.BAD_CASCADE, "begins with temperature 2.0 and ends")
def cascade_with_a_second_temperature_of_one_member(directory: Path, manifest: Manifest) -> None:
    manifest["cascade"]["stages"][0]["temperature"] = 2.0


@case(Violation.BAD_TEMPERATURE, "the temperature of the cascade at 'endpoint-2' is 0.0")
def cascade_without_a_temperature(directory: Path, manifest: Manifest) -> None:
    del manifest["cascade"]["stages"][1]["temperature"]


@case(Violation.BAD_CASCADE, "accuracy loss 1.0 with 2.5 members run; expected a share below 1, and 1 to 4")
def cascade_that_may_lose_everything(directory: Path, manifest: Manifest) -> None:
    manifest["cascade"]["accuracyLoss"] = 1.0


@case(Violation.BAD_CONFORMAL, "there are conformal thresholds for ['mean', 'random', 'random']")
def two_thresholds_of_one_policy(directory: Path, manifest: Manifest) -> None:
    manifest["conformal"][2]["policy"] = "random"


@case(Violation.BAD_CONFORMAL, "expected some of ['curve', 'mean', 'random'], each once")
def sets_of_a_cascade_that_is_not_there(directory: Path, manifest: Manifest) -> None:
    del manifest["cascade"]


@case(Violation.BAD_CONFORMAL, "expected some of ['cascade', 'mean', 'random'], each once")
def sets_of_a_curve_that_is_not_there(directory: Path, manifest: Manifest) -> None:
    manifest["conformal"][1]["policy"] = "curve"
    for member in manifest["members"]:
        member.pop("curvePoint", None)


@case(Violation.BAD_CONFORMAL, "the conformal levels of 'mean' are [0.9, 0.9]; expected them to ascend between 0 and 1")
def levels_that_do_not_ascend(directory: Path, manifest: Manifest) -> None:
    for threshold in manifest["conformal"][0]["thresholds"]:
        threshold["level"] = 0.9


@case(Violation.BAD_CONFORMAL, "the conformal levels of 'mean' are []")
def policy_without_levels(directory: Path, manifest: Manifest) -> None:
    manifest["conformal"][0]["thresholds"] = []


@case(Violation.BAD_CONFORMAL, "the conformal thresholds of 'mean' are [0.9, 0.5]; expected none to fall, 0 to 1")
def thresholds_that_fall(directory: Path, manifest: Manifest) -> None:
    manifest["conformal"][0]["thresholds"][0]["threshold"] = 0.9
    manifest["conformal"][0]["thresholds"][1]["threshold"] = 0.5


def replace_probe(directory: Path, manifest: Manifest, **changed: Any) -> None:
    replace_tensors(directory, {"file": manifest["probe"]}, **changed)


@case(Violation.WRONG_HASH, "'probe.safetensors' has SHA-256")
def probe_of_other_bytes(directory: Path, manifest: Manifest) -> None:
    path = directory / "probe.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@case(Violation.EXTRA_FILE, "'probe.safetensors' is in the directory but not in the manifest")
def probe_that_the_manifest_does_not_list(directory: Path, manifest: Manifest) -> None:
    del manifest["probe"]


@case(Violation.MALFORMED_TENSORS, "'probe.safetensors' is not a safetensors file")
def probe_that_is_no_safetensors_file(directory: Path, manifest: Manifest) -> None:
    replace_file(directory, manifest["probe"], b"junk")


@case(Violation.WRONG_TENSOR_NAMES, "'probe.safetensors' holds 'targets'; a probe is 'inputs' and 'logits'")
def probe_with_another_tensor(directory: Path, manifest: Manifest) -> None:
    replace_probe(directory, manifest, targets=np.zeros(5))


@case(Violation.WRONG_SHAPE, "'logits' in 'probe.safetensors' is [3, 5, 3]; expected [4, 5, 3]")
def probe_of_fewer_members(directory: Path, manifest: Manifest) -> None:
    replace_probe(directory, manifest, logits=np.zeros((3, 5, 3), np.float32))


@case(Violation.WRONG_SHAPE, "'inputs' in 'probe.safetensors' is [5, 3]; expected [5, 4]")
def probe_of_other_rows(directory: Path, manifest: Manifest) -> None:
    replace_probe(directory, manifest, inputs=np.zeros((5, 3), np.float32))


@case(Violation.WRONG_SHAPE, "'inputs' in 'probe.safetensors' is [0, 4]; expected [0, 4], of one row or more")
def probe_without_rows(directory: Path, manifest: Manifest) -> None:
    replace_probe(directory, manifest, inputs=np.zeros((0, 4), np.float32), logits=np.zeros((4, 0, 3), np.float32))


@case(Violation.WRONG_SHAPE, "'inputs' in 'probe.safetensors' is []; expected [0, 4]")
def probe_that_is_one_number(directory: Path, manifest: Manifest) -> None:
    replace_probe(directory, manifest, inputs=np.array(0.0, np.float32))


@case(Violation.WRONG_DTYPE, "'inputs' in 'probe.safetensors' is float64; the graph says float32")
def probe_of_another_type(directory: Path, manifest: Manifest) -> None:
    replace_probe(directory, manifest, inputs=np.zeros((5, 4)))


@case(Violation.NON_FINITE, "'logits' in 'probe.safetensors' holds a value that is not finite")
def probe_with_infinite_logits(directory: Path, manifest: Manifest) -> None:
    replace_probe(directory, manifest, logits=np.full((4, 5, 3), np.inf, np.float32))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_ensemble.write(tmp_path / "ensemble")
    return tmp_path / "ensemble"


@pytest.mark.parametrize(("violation", "message", "breaks"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_broken_directory_is_refused(directory: Path, violation: Violation, message: str, breaks: Break) -> None:
    validate(directory)  # it was whole
    manifest = json.loads((directory / "manifest.json").read_text())
    breaks(directory, manifest)
    if manifest:
        (directory / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(InvalidEnsemble) as caught:
        validate(directory)

    assert caught.value.violation is violation
    assert message in str(caught.value)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(InvalidEnsemble, match="is not a directory") as caught:
            validate(path)
        assert caught.value.violation is Violation.NO_DIRECTORY


def edit(directory: Path, **fields: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_logits_of_the_next_token_have_an_axis_of_positions(tmp_path: Path) -> None:
    stored = tiny_ensemble.write_next_token(tmp_path / "bigram", positions=5)
    assert stored.graph.outputs["logits"].shape == (-1, 5, 3)
    edit(tmp_path / "bigram", task="CLASSIFICATION")
    with pytest.raises(InvalidEnsemble, match=r"float32 \[-1, 5, 3\]; expected 'logits' float32 \[-1, 3\]") as caught:
        validate(tmp_path / "bigram")
    assert caught.value.violation is Violation.WRONG_OUTPUT


def test_as_many_positions_of_logits_as_of_tokens(tmp_path: Path) -> None:
    tiny_ensemble.write_next_token(tmp_path / "bigram", positions=5)
    manifest = json.loads((tmp_path / "bigram/manifest.json").read_text())
    model = onnx.load_model(tmp_path / "bigram/graph.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    replace_file(tmp_path / "bigram", manifest["graph"], model.SerializeToString())
    edit(tmp_path / "bigram", graph=manifest["graph"])
    with pytest.raises(InvalidEnsemble, match=r"expected 'logits' float32 \[-1, 5, 3\]") as caught:
        validate(tmp_path / "bigram")
    assert caught.value.violation is Violation.WRONG_OUTPUT


@pytest.mark.parametrize(("datatype", "shape"), [("FP32", [5]), ("INT64", [5, 1]), ("INT64", [])])
def test_tokens_are_integers_on_one_axis(tmp_path: Path, datatype: str, shape: list[int]) -> None:
    tiny_ensemble.write_next_token(tmp_path / "bigram", positions=5)
    edit(tmp_path / "bigram", input={"name": "input", "datatype": datatype, "shape": shape})
    with pytest.raises(InvalidEnsemble, match="NEXT_TOKEN takes integers") as caught:
        validate(tmp_path / "bigram")
    assert caught.value.violation is Violation.WRONG_INPUT


def test_every_violation_has_a_case() -> None:
    elsewhere = {Violation.NO_DIRECTORY, Violation.UNSIGNED, Violation.WRONG_SIGNATURE}
    assert {violation for _, violation, _, _ in CASES} | elsewhere == set(Violation)


def test_a_newer_minor_version_may_have_fields_that_we_do_not_know(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest |= {"formatVersion": "1.99", "surprise": 1}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert len(validate(directory).manifest.members) == 4


def test_a_newer_minor_version_may_have_files_that_we_do_not_know(directory: Path) -> None:
    (directory / "surprise.bin").touch()
    with pytest.raises(InvalidEnsemble, match="extra-file"):
        validate(directory)
    edit(directory, formatVersion="1.99")
    assert len(validate(directory).manifest.members) == 4


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.3"])
def test_directories_without_a_probe_load(directory: Path, version: str) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / manifest.pop("probe")["path"]).unlink()
    (directory / "manifest.json").write_text(json.dumps(manifest | {"formatVersion": version}))
    assert validate(directory).probe is None
