"""What an engine computes is compared with what was trained, before anybody is answered."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from protos.stored_ensemble import Probe, StoredEnsemble, Tensors
from serving import ensemble as ensembles
from serving.errors import StartupError
from serving.networks import probe
from serving.networks.engines.call import Feeds, Network
from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.networks.skeleton import Skeleton
from serving.telemetry.metrics import Metrics
from tests import tiny_ensemble
from tests.serving.networks.engines.test_onnx_cuda import on_cpu
from tests.serving.test_server import start_and_fail


class Rounding(OnnxCpu):
    """Computes in fp32 and says something else; its logits are off by a known amount."""

    def __init__(self, precision: str, off: float) -> None:
        super().__init__(1)
        self.precision = precision
        self._off = np.array([off, 0.0, 0.0], np.float32)

    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        network = super().load(skeleton, tensors)

        def run(inputs: np.ndarray, feeds: Feeds) -> np.ndarray:
            return network(inputs, feeds) + self._off

        return run


@pytest.fixture
def stored(tmp_path: Path) -> StoredEnsemble:
    return tiny_ensemble.write(tmp_path / "tiny")


def load(stored: StoredEnsemble, engine: OnnxCpu, tolerance: float = 0.02) -> ensembles.Ensemble:
    return ensembles.load(stored, engine, Metrics(), precision_tolerance=tolerance)


def largest_difference(stored: StoredEnsemble, off: float) -> float:
    """Of a probability, if a logit of class 0 is so far off; by the definition."""
    assert stored.probe is not None
    temperatures = np.array([member.temperature for member in stored.manifest.members])[:, None, None]
    exact, shifted = (
        np.exp((stored.probe.logits_MNC.astype(np.float64) + by) / temperatures) for by in (0.0, [off, 0.0, 0.0])
    )
    probs = [exponents / exponents.sum(-1, keepdims=True) for exponents in (exact, shifted)]
    return float(np.abs(probs[0] - probs[1]).max())


def test_reduced_precision_is_served_up_to_the_tolerance_and_refused_beyond(stored: StoredEnsemble) -> None:
    off = largest_difference(stored, 0.1)
    load(stored, Rounding("bf16", 0.1), tolerance=off * 1.01)
    with pytest.raises(StartupError, match=r"in bf16 on onnxruntime-cpu, member '.*' of 'tiny' gives .*tolerance"):
        load(stored, Rounding("bf16", 0.1), tolerance=off * 0.99)


def test_fp32_has_a_tolerance_of_its_own(stored: StoredEnsemble) -> None:
    load(stored, Rounding("fp32", 0.0), tolerance=0.0)
    load(stored, Rounding("fp32", 1e-3), tolerance=0.0)
    with pytest.raises(StartupError, match="in fp32 on onnxruntime-cpu, member"):
        load(stored, Rounding("fp32", 0.1), tolerance=1.0)


def test_answers_that_are_not_finite_are_refused_at_any_tolerance_below_1(stored: StoredEnsemble) -> None:
    with pytest.raises(StartupError, match="the probability nan"):
        load(stored, Rounding("fp16", float("nan")), tolerance=0.99)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_logits_that_overflow_are_refused(stored: StoredEnsemble) -> None:
    with pytest.raises(StartupError, match="the probability nan"):
        load(stored, Rounding("fp16", float("inf")))


def test_without_probe_rows_fp32_is_served_and_nothing_else(stored: StoredEnsemble) -> None:
    bare = dataclasses.replace(stored, probe=None)
    load(bare, OnnxCpu(1))
    with pytest.raises(StartupError, match="--precision fp16: 'tiny' has no probe rows to compare with"):
        load(bare, Rounding("fp16", 0.0), tolerance=1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("wrong", ["alone", "fused"])
def test_members_are_tried_both_alone_and_fused(stored: StoredEnsemble, precision: str, wrong: str) -> None:
    class Fusing(Rounding):
        fused_members, fused_parameters = 16, 2**20

        def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
            return OnnxCpu.load(self, skeleton, tensors) if wrong == "fused" else super().load(skeleton, tensors)

        def load_fused(self, skeleton: Skeleton, tensors: Tensors) -> Network:
            return Rounding.load(self, skeleton, tensors) if wrong == "fused" else OnnxCpu.load(self, skeleton, tensors)

    load(stored, Fusing(precision, 0.0))
    with pytest.raises(StartupError, match=f"in {precision} on onnxruntime-cpu, member"):
        load(stored, Fusing(precision, 0.5))


def test_the_largest_difference_is_logged(stored: StoredEnsemble, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load(stored, Rounding("bf16", 0.01), tolerance=1.0)
    assert (
        f"probe rows=5 runs=20 fused=False precision=bf16 worst_difference={largest_difference(stored, 0.01):.2g}"
        in caplog.text
    )


def test_probe_rows_run_in_batches_that_the_engine_was_made_for(stored: StoredEnsemble) -> None:
    ensembles.load(stored, on_cpu(max_batch_rows=2), Metrics())  # five rows; three would be refused


@pytest.mark.parametrize(("members", "rows", "each"), [(1, 16, 16), (8, 16, 8), (50, 16, 1), (100, 16, 1), (3, 1, 1)])
def test_in_fp32_rows_are_dealt_out_evenly(members: int, rows: int, each: int) -> None:
    mask_MN = probe.deal(members, rows)
    assert mask_MN.shape == (members, rows)
    assert (mask_MN.sum(axis=1) == each).all()
    answers_N = mask_MN.sum(axis=0)
    assert answers_N.max() - answers_N.min() <= 1


def test_every_member_of_many_is_compared_in_fp32(tmp_path: Path) -> None:
    members = probe.FP32_RUNS + 1
    stored = tiny_ensemble.write(tmp_path / "many", members)
    load(stored, OnnxCpu(1))
    assert stored.probe is not None
    for m in (0, members - 1):
        logits_MNC = stored.probe.logits_MNC.copy()
        logits_MNC[m, :, 0] += 1.0
        wrong = dataclasses.replace(stored, probe=Probe(stored.probe.inputs, logits_MNC))
        with pytest.raises(StartupError, match=f"member '{stored.manifest.members[m].id}'"):
            load(wrong, OnnxCpu(1))


def test_real_fp16_arithmetic_passes_on_a_network_that_it_fits(stored: StoredEnsemble) -> None:
    ensembles.load(stored, on_cpu(precision="fp16"), Metrics())


def test_bf16_on_this_cpu_passes_or_says_that_the_cpu_has_none(stored: StoredEnsemble) -> None:
    openvino = pytest.importorskip("openvino", reason="extra [openvino] is not installed")
    from serving.networks.engines.openvino_cpu import OpenVinoCpu

    engine = OpenVinoCpu(1, "bf16")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        load(stored, engine)
        with pytest.raises(StartupError, match="in bf16 on openvino-cpu"):
            load(stored, engine, tolerance=1e-7)
    else:
        with pytest.raises(StartupError, match="on this CPU OpenVINO computes in f32"):
            load(stored, engine)


def test_a_server_with_a_precision_that_cannot_be_had_does_not_start(tiny_directory: Path) -> None:
    line = start_and_fail(str(tiny_directory), "--device", "cpu", "--engine", "onnxruntime", "--precision", "fp16")
    assert "--precision fp16: ONNX Runtime has fp32 alone on a CPU; expected --engine openvino" in line


def test_a_wrong_probe_keeps_a_server_from_starting(tmp_path: Path) -> None:
    from protos import manifest_file

    described = tiny_ensemble.manifest(1)
    right = tiny_ensemble.probe(1)
    wrong = Probe(right.inputs, right.logits_MNC[:, ::-1].copy())  # another network's answers
    weights, statistics = {"w0": tiny_ensemble.weights(0)}, {"s0": tiny_ensemble.statistics(0)}
    graph = tiny_ensemble.graph().SerializeToString()
    manifest_file.write(tmp_path / "wrong", described, graph, weights, statistics, probe=wrong)
    assert "in fp32 on onnxruntime-cpu, member 'endpoint-0' of 'tiny'" in start_and_fail(str(tmp_path / "wrong"))
