from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.networks.fused import fused_graph, fused_skeleton, fused_tensors, groups
from tests import tiny_ensemble

ROWS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


@pytest.mark.parametrize("members", [slice(0, 4), slice(1, 3), slice(2, 3)])
def test_a_fused_graph_answers_what_its_members_answer(tmp_path: Path, members: slice) -> None:
    stored = tiny_ensemble.write(tmp_path / "tiny")
    tensors = [stored.tensors(member) for member in stored.manifest.members[members]]
    engine = OnnxCpu(1)
    network = engine.load_fused(fused_skeleton(stored, len(tensors)), fused_tensors(tensors))
    for rows in (9, 1):
        found = network(ROWS[:rows], {})
        np.testing.assert_allclose(found, tiny_ensemble.member_logits(ROWS[:rows])[members], atol=1e-5)
    engine.close()


@pytest.mark.parametrize(
    ("members", "count", "expected"),
    [
        (8, 2, [(0, 4), (4, 8)]),
        (5, 2, [(0, 2), (2, 5)]),
        (2, 16, [(0, 1), (1, 2)]),
        (7, 1, [(0, 7)]),
    ],
)
def test_groups_hold_every_member_once(members: int, count: int, expected: list[tuple[int, int]]) -> None:
    assert [(group.start, group.stop) for group in groups(members, count)] == expected


def test_names_in_subgraphs_are_each_members_own() -> None:
    """Two members with an `If`, whose branches read what lies outside of them."""
    names = {"then_branch": "Relu", "else_branch": "Neg"}
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    branches = {
        name: helper.make_graph([helper.make_node(kind, ["scaled"], ["out"])], name, [], [out])
        for name, kind in names.items()
    }
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Mul", ["input", "scale"], ["scaled"]),
                helper.make_node("If", ["flag"], ["logits"], **branches),
            ],
            "branching",
            [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
            [
                onnx.numpy_helper.from_array(np.float32(2), "scale"),
                onnx.numpy_helper.from_array(np.array(True), "flag"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    fused = fused_graph(model, 2)
    values = {tensor.name: tensor for tensor in fused.graph.initializer}
    second_flag, second_scale = (next(n for n in values if "1" in n and n.endswith(end)) for end in ("flag", "scale"))
    values[second_flag].CopyFrom(onnx.numpy_helper.from_array(np.array(False), second_flag))
    values[second_scale].CopyFrom(onnx.numpy_helper.from_array(np.float32(3), second_scale))
    onnx.checker.check_model(fused)
    (found,) = ReferenceEvaluator(fused).run(None, {"input": ROWS})
    np.testing.assert_allclose(found, [np.maximum(2 * ROWS, 0), -3 * ROWS], atol=1e-6)
