"""Members made when they are loaded, and made as they run: the same answers, and what memory holds."""

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from protos import manifest_file
from protos.curve import bezier
from protos.ensemble_pb2 import BEZIER, POLYGONAL_CHAIN, CurvePoint, Member, Term
from protos.stored_ensemble import StoredEnsemble, Tensors
from protos.validate import validate
from serving import ensemble as ensembles
from serving.errors import StartupError
from serving.networks import members
from serving.networks.curve import CurveGrid, NoCurve
from serving.networks.engines.call import Network
from serving.networks.engines.engine import Engine
from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.networks.executor import Executor
from serving.networks.members import Memory
from serving.networks.skeleton import Skeleton
from serving.telemetry.metrics import Metrics
from tests import tiny_ensemble
from tests.serving.networks.engines.test_onnx_cuda import on_cpu

ROWS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


class Watched(OnnxCpu):
    """Counts what it is given to hold."""

    def __init__(self) -> None:
        super().__init__(1)
        self.held: list[Tensors] = []

    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        self.held.append(tensors)
        return super().load(skeleton, tensors)


def logits(stored: StoredEnsemble, engine: Engine, memory: Memory) -> NDArray[np.float32]:
    loaded = members.load(stored, engine, memory)
    executor = Executor(engine, loaded, tiny_ensemble.CLASSES)
    return executor.run(ROWS, np.ones((len(loaded.members), len(ROWS)), bool))


@pytest.mark.parametrize("engine", [OnnxCpu(1), OnnxCpu(2), on_cpu(), "openvino"], ids=["1", "2", "bound", "openvino"])
@pytest.mark.parametrize(("kind", "bends"), [(BEZIER, 1), (POLYGONAL_CHAIN, 2)])
def test_compact_answers_equal_materialised_ones(tmp_path: Path, engine: Engine | str, kind: int, bends: int) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="extra [openvino] is not installed")
        from serving.networks.engines.openvino_cpu import OpenVinoCpu

        engine = OpenVinoCpu(2, "fp32")
    assert isinstance(engine, Engine)
    stored = tiny_ensemble.write_curve(tmp_path / "c", np.linspace(0, 1, 11).tolist(), kind, bends)  # type: ignore[arg-type]
    materialised = logits(stored, OnnxCpu(1), Memory.FAST)
    np.testing.assert_allclose(logits(stored, engine, Memory.COMPACT), materialised, atol=1e-5)


def test_fp16_combines_weights_in_fp16_and_is_near(tmp_path: Path) -> None:
    stored = tiny_ensemble.write_curve(tmp_path / "c")
    materialised = logits(stored, OnnxCpu(1), Memory.FAST)
    half = logits(stored, on_cpu(precision="fp16"), Memory.COMPACT)
    assert 1e-6 < np.abs(half - materialised).max() < 2e-2


def test_a_curves_weight_sets_are_held_once_whatever_its_members(tmp_path: Path) -> None:
    stored = tiny_ensemble.write_curve(tmp_path / "c", np.linspace(0, 1, 50).tolist())
    one = sum(tensor.nbytes for tensor in stored.weight_sets["w0"].values())
    engine = Watched()
    loaded = members.load(stored, engine, Memory.COMPACT)
    assert len(loaded.members) == 50
    assert sum(tensor.nbytes for tensors in engine.held for tensor in tensors.values()) == 3 * one


def test_the_network_of_a_curve_that_is_asked_for_is_not_loaded_twice(tmp_path: Path) -> None:
    stored = tiny_ensemble.write_curve(tmp_path / "c")
    engine = Watched()
    loaded = members.load(stored, engine, Memory.COMPACT, CurveGrid(stored))
    assert len(engine.held) == 1
    assert loaded.combined is not None
    assert {id(member.network) for member in loaded.members} == {id(loaded.combined.network)}


def test_members_that_are_no_combinations_stay_networks_of_their_own(tmp_path: Path) -> None:
    """Snapshots of 10 weight sets would cost ten times the arithmetic, and save nothing."""
    stored = tiny_ensemble.write(tmp_path / "tiny", members=6)  # w3 to w5 belong to no combination
    engine = Watched()
    loaded = members.load(stored, engine, Memory.COMPACT)
    assert loaded.combined is not None
    assert loaded.combined.weight_sets == ("w0", "w1", "w2")
    assert [member.network is loaded.combined.network for member in loaded.members] == [True] * 3 + [False] * 2 + [True]
    np.testing.assert_allclose(
        logits(stored, OnnxCpu(1), Memory.COMPACT), tiny_ensemble.member_logits(ROWS, 6), atol=1e-5
    )


def test_without_combinations_compact_changes_nothing(tmp_path: Path) -> None:
    stored = tiny_ensemble.write(tmp_path / "tiny", members=2)
    assert members.load(stored, OnnxCpu(1), Memory.COMPACT).combined is None


def mixed_types() -> onnx.ModelProto:
    """A scalar that is read twice, FP64 and FP16, statistics with two axes, a parameter that only a subgraph reads."""
    branch = [
        helper.make_graph(
            [helper.make_node("Mul" if taken else "Add", ["scaled", "inner"], [f"out{taken}"])],
            f"branch{taken}",
            [],
            [helper.make_tensor_value_info(f"out{taken}", TensorProto.FLOAT, ["batch", 4])],
        )
        for taken in (1, 0)
    ]
    nodes = [
        helper.make_node("Mul", ["input", "scalar"], ["scalared"]),
        helper.make_node("Sub", ["scalared", "mean"], ["centred"]),
        helper.make_node("Cast", ["centred"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["wide", "matrix"], ["product"]),
        helper.make_node("Cast", ["product"], ["narrow"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["narrow", "full"], ["scaled"]),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Mul", ["chosen", "scalar"], ["logits"]),
    ]
    tensors = mixed_weights(0) | mixed_statistics(0) | {"yes": np.array(True)}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "mixed",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
            [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def mixed_weights(seed: int) -> Tensors:
    draw = np.random.default_rng(seed)
    return {
        "scalar": np.array(draw.normal(), np.float32),
        "matrix": draw.normal(size=(4, 4)),
        "half": draw.normal(size=4).astype(np.float16),
        "inner": draw.normal(size=(1, 4)).astype(np.float32),
    }


def mixed_statistics(seed: int) -> Tensors:
    return {"mean": np.random.default_rng(100 + seed).normal(size=(1, 4)).astype(np.float32)}


def write_mixed(directory: Path, opset: int = 20) -> StoredEnsemble:
    described = tiny_ensemble.manifest(1)
    del described.members[:]
    described.class_labels.append("d")
    for i, t in enumerate((0.0, 0.3, 1.0)):
        terms = [Term(weight_set=f"w{k}", coefficient=value) for k, value in enumerate(bezier(1, t))]
        point = CurvePoint(curve=BEZIER, bends=1, t=t)
        described.members.append(Member(id=f"m{i}", curve_point=point, terms=terms, statistics=f"s{i}", temperature=1))
    model = mixed_types()
    model.opset_import[0].version = opset
    return manifest_file.write(
        directory,
        described,
        model.SerializeToString(),
        {f"w{k}": mixed_weights(k) for k in range(3)},
        {f"s{i}": mixed_statistics(i) for i in range(3)},
    )


def test_tensors_of_every_type_and_shape_are_combined(tmp_path: Path) -> None:
    stored = write_mixed(tmp_path / "mixed")
    mask_MB = np.ones((3, len(ROWS)), bool)
    engine = OnnxCpu(1)
    found = [Executor(engine, members.load(stored, engine, memory), 4).run(ROWS, mask_MB) for memory in Memory]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    assert np.abs(found[0][0] - found[0][1]).max() > 0.01  # members differ


def test_a_graph_of_an_old_opset_is_refused_where_weights_are_combined(tmp_path: Path) -> None:
    stored = write_mixed(tmp_path / "old", opset=12)
    with pytest.raises(StartupError, match="the graph has opset 12; weights can be combined as it runs from"):
        members.load(stored, OnnxCpu(1), Memory.COMPACT)


def test_an_ensemble_without_a_curve_keeps_nothing_of_what_was_stored(tiny_directory: Path) -> None:
    stored = validate(tiny_directory)
    ensemble = ensembles.load(stored, OnnxCpu(1), Metrics())
    assert isinstance(ensemble.curve, NoCurve)
    kept = weakref.ref(stored)
    del stored
    gc.collect()
    assert kept() is None
    ensemble.close()
