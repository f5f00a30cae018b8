"""Raw and typed contents of every datatype that a graph may take give the same rows."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.graph import DATATYPES
from serving import ensemble as ensembles
from serving.ensemble import Ensemble
from serving.errors import InvalidRequest
from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.request import CONTENTS, parse
from serving.telemetry.metrics import Metrics
from tests import tiny_ensemble


def load(directory: Path, datatype: str) -> Ensemble:
    return ensembles.load(tiny_ensemble.write(directory / datatype, datatype=datatype), OnnxCpu(1), Metrics())


@pytest.mark.parametrize("datatype", DATATYPES)
def test_both_forms_give_the_same_rows(tmp_path: Path, datatype: str) -> None:
    ensemble = load(tmp_path, datatype)
    values = np.array([[0, 1, 1, 0], [1, 0, 1, 1]]).astype(DATATYPES[datatype])
    raw = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[values.tobytes()])
    raw.inputs.add(name="input", datatype=datatype, shape=[2, 4])
    parsed = parse(raw, ensemble, 8, None).inputs
    assert parsed.dtype == DATATYPES[datatype]
    np.testing.assert_array_equal(parsed, values)

    typed = oip.ModelInferRequest(model_name="tiny")
    tensor = typed.inputs.add(name="input", datatype=datatype, shape=[2, 4])
    if datatype == "FP16":
        with pytest.raises(InvalidRequest, match="FP16 without raw contents"):
            parse(typed, ensemble, 8, None)
        return
    getattr(tensor.contents, CONTENTS[datatype]).extend(values.ravel().tolist())
    parsed = parse(typed, ensemble, 8, None).inputs
    assert parsed.dtype == DATATYPES[datatype]
    np.testing.assert_array_equal(parsed, values)


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_narrow_floats_are_widened_exactly_for_a_network_that_takes_fp32(
    tmp_path: Path, datatype: str, dtype: type[np.generic]
) -> None:
    ensemble = load(tmp_path, "FP32")
    values = np.array([[1.5, -0.1, 3e-5, 6e4], [0.0, -0.0, 2**-14, np.pi]]).astype(dtype)
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[values.tobytes()])
    request.inputs.add(name="input", datatype=datatype, shape=[2, 4])
    parsed = parse(request, ensemble, 8, None).inputs
    assert parsed is not None
    assert parsed.dtype == np.float32
    np.testing.assert_array_equal(parsed, values.astype(np.float32))

    request.raw_input_contents[0] = values.tobytes() + b"x"
    with pytest.raises(InvalidRequest, match=rf"has 17 bytes of raw contents; \[2, 4\] of {datatype} is 16"):
        parse(request, ensemble, 8, None)
    request.raw_input_contents[0] = np.full((2, 4), np.inf).astype(dtype).tobytes()
    with pytest.raises(InvalidRequest, match="holds inf in row 0; expected finite numbers"):
        parse(request, ensemble, 8, None)
    with pytest.raises(InvalidRequest, match=f"input 'input' is {datatype}; the model takes FP64"):
        parse(request, load(tmp_path, "FP64"), 8, None)


def test_typed_integers_on_both_sides_of_2_to_the_63_are_exact(tmp_path: Path) -> None:
    values = [2**64 - 1, 2**63 + 1, 3, 0]
    request = oip.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="input", datatype="UINT64", shape=[1, 4])
    tensor.contents.uint64_contents.extend(values)
    assert parse(request, load(tmp_path, "UINT64"), 8, None).inputs.tolist() == [values]


@pytest.mark.parametrize("value", [256, 2**32 - 1])
def test_a_typed_value_beyond_its_datatype_is_refused(tmp_path: Path, value: int) -> None:
    request = oip.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="input", datatype="UINT8", shape=[1, 4])
    tensor.contents.uint_contents.extend([0, 1, 2, value])
    with pytest.raises(InvalidRequest, match=f"holds 0 to {value}; UINT8 is 0 to 255"):
        parse(request, load(tmp_path, "UINT8"), 8, None)
