"""The CUDA engine's logic on ONNX Runtime's CPU provider: batch sizes, padding, fixed buffers, halving, fp16.

What only a GPU can show is marked `gpu`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protos.stored_ensemble import StoredEnsemble
from serving.errors import StartupError
from serving.networks import device, members
from serving.networks.engines.binding import Staging
from serving.networks.engines.call import Call
from serving.networks.engines.cuda_runtime import CudaRuntime
from serving.networks.engines.engine import Engine
from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.networks.engines.onnx_cuda import CUDA, TENSORRT, OnnxCuda
from serving.networks.executor import Executor
from serving.networks.skeleton import Skeleton
from tests import tiny_ensemble

ROWS = np.random.default_rng(0).normal(size=(13, 4)).astype(np.float32)


class NoGpu(CudaRuntime):
    """In place of the CUDA runtime."""

    def __init__(self) -> None:
        self.pinned: list[NDArray[np.generic]] = []

    def stream(self) -> int:
        return 1234

    def pin(self, array: NDArray[np.generic]) -> None:
        self.pinned.append(array)


def on_cpu(max_batch_rows: int = 13, precision: str = "fp32") -> OnnxCuda:
    return OnnxCuda(precision, max_batch_rows, runtime=NoGpu(), device="cpu")


@pytest.fixture
def stored(tmp_path: Path) -> StoredEnsemble:
    return tiny_ensemble.write(tmp_path / "tiny")


def executor(stored: StoredEnsemble, engine: Engine) -> Executor:
    return Executor(engine, members.load(stored, engine), tiny_ensemble.CLASSES)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13])
def test_answers_equal_the_definition_whatever_the_batch_is_filled_up_to(stored: StoredEnsemble, rows: int) -> None:
    logits_MBC = executor(stored, on_cpu()).run(ROWS[:rows], np.ones((4, rows), bool))
    np.testing.assert_allclose(logits_MBC, tiny_ensemble.member_logits(ROWS[:rows]), atol=1e-5)


def test_members_on_different_rows_of_one_batch_do_not_mix_them_up(stored: StoredEnsemble) -> None:
    engine = on_cpu()
    bound = executor(stored, engine)
    draw = np.random.default_rng(1)
    for _ in range(20):
        rows = int(draw.integers(1, 14))
        mask_MB = draw.random((4, rows)) < 0.6
        mask_MB[0] |= ~mask_MB.any(0)
        expected = np.where(mask_MB[:, :, None], tiny_ensemble.member_logits(ROWS[:rows]), 0)
        np.testing.assert_allclose(bound.run(ROWS[:rows], mask_MB), expected, atol=1e-5)


def test_answers_stay_as_they_are_when_the_next_batch_runs_in_the_same_buffers(stored: StoredEnsemble) -> None:
    engine = on_cpu()
    (first,) = [member.network for member in members.load(stored, engine).members][:1]
    one = first(ROWS[:4], {})
    kept = one.copy()
    first(ROWS[4:8], {})
    np.testing.assert_array_equal(one, kept)


def test_rows_are_copied_once_for_all_members_and_padding_is_zero() -> None:
    staging = Staging((4,), np.dtype(np.float32), [1, 2, 4, 8], "cpu", lambda array: None)
    batch = ROWS[:3]
    assert [staging.put(rows) for rows in (ROWS[:7], batch, batch, batch)] == [8, 4, 4, 4]
    assert staging.uploads == 2
    on_device = staging.buffer(4).numpy()
    np.testing.assert_array_equal(on_device[:3], ROWS[:3])
    np.testing.assert_array_equal(on_device[3], 0)  # not a row of the request before


def test_host_buffers_are_pinned_once_for_all_networks_of_a_row_shape(stored: StoredEnsemble) -> None:
    engine = on_cpu()
    executor(stored, engine)
    executor(stored, engine)
    assert [array.shape for array in engine.runtime.pinned] == [(13, 4)]


def test_every_batch_size_is_warmed(stored: StoredEnsemble) -> None:
    engine = on_cpu(max_batch_rows=13)
    seen: list[int] = []
    loaded = members.load(stored, engine)
    network = loaded.members[0].network

    def watched(inputs, feeds):  # type: ignore[no-untyped-def]
        seen.append(len(inputs))
        return network(inputs, feeds)

    loaded.members[0] = members.LoadedMember(watched)
    Executor(engine, loaded, tiny_ensemble.CLASSES).warm_up(ROWS)
    assert seen == [1, 2, 4, 8, 13]


def test_a_batch_that_does_not_fit_is_halved_into_smaller_batch_sizes(stored: StoredEnsemble) -> None:
    engine = on_cpu()
    network = members.load(stored, engine).members[0].network
    ran: list[int] = []

    def full(inputs, feeds):  # type: ignore[no-untyped-def]
        if len(inputs) > 4:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0")
        ran.append(len(inputs))
        return network(inputs, feeds)

    logits_BC = Call(full, ROWS).answer()
    np.testing.assert_allclose(logits_BC, tiny_ensemble.member_logits(ROWS)[0], atol=1e-5)
    assert ran == [3, 3, 3, 4]


def test_fp16_answers_are_near_and_differ(stored: StoredEnsemble) -> None:
    half = executor(stored, on_cpu(precision="fp16")).run(ROWS, np.ones((4, 13), bool))
    full = executor(stored, on_cpu()).run(ROWS, np.ones((4, 13), bool))
    assert half.dtype == np.float32
    assert 1e-6 < np.abs(half - full).max() < 2e-2


def test_a_session_gets_the_shared_stream_true_fp32_and_the_cpu_for_shapes() -> None:
    plain = OnnxCuda("fp32", 8, runtime=NoGpu()).providers()
    assert [name if isinstance(name, str) else name[0] for name in plain] == [CUDA, "CPUExecutionProvider"]
    options = plain[0][1]
    assert (options["user_compute_stream"], options["use_tf32"], options["enable_cuda_graph"]) == ("1234", "0", "0")
    fast = OnnxCuda("bf16", 8, tensorrt=True, runtime=NoGpu()).providers()
    assert fast[0][0] == TENSORRT
    assert (fast[0][1]["trt_bf16_enable"], fast[0][1]["trt_fp16_enable"]) == ("1", "0")


def test_bf16_without_tensorrt_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(StartupError, match="--precision bf16 on a GPU needs --engine tensorrt"):
        on_cpu(precision="bf16")


def test_a_runtime_that_refuses_says_what_it_was_asked_and_what_it_answered() -> None:
    if device._missing_for_cuda() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(StartupError, match=r"CUDA runtime is missing|cudaStreamCreate failed with error"):
        CudaRuntime().stream()


@pytest.fixture
def gpu() -> Iterator[OnnxCuda]:
    engine = device.choose("cuda", max_batch_rows=13)
    assert isinstance(engine, OnnxCuda)
    yield engine
    engine.close()


@pytest.mark.gpu
def test_on_a_gpu_answers_equal_the_cpu_engine(stored: StoredEnsemble, gpu: OnnxCuda) -> None:
    on_gpu = executor(stored, gpu)
    cpu = executor(stored, OnnxCpu(1))
    for rows in (1, 3, 8, 13):
        mask_MB = np.ones((4, rows), bool)
        np.testing.assert_allclose(on_gpu.run(ROWS[:rows], mask_MB), cpu.run(ROWS[:rows], mask_MB), atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_cuda_graphs_replay_the_same_answers_for_new_rows(stored: StoredEnsemble) -> None:
    engine = device.choose("cuda", max_batch_rows=13, cuda_graphs=True)
    replayed = executor(stored, engine)
    replayed.warm_up(ROWS)
    for rows in (1, 3, 8, 13, 3, 1):
        inputs = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        logits_MBC = replayed.run(inputs, np.ones((4, rows), bool))
        np.testing.assert_allclose(logits_MBC, tiny_ensemble.member_logits(inputs), atol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu_fp16_is_near(stored: StoredEnsemble) -> None:
    engine = device.choose("cuda", precision="fp16", max_batch_rows=13)
    logits_MBC = executor(stored, engine).run(ROWS, np.ones((4, 13), bool))
    np.testing.assert_allclose(logits_MBC, tiny_ensemble.member_logits(ROWS), atol=2e-2)


@pytest.mark.gpu
def test_on_a_gpu_out_of_memory_is_recognised(gpu: OnnxCuda) -> None:
    """A layer wider than any GPU's memory: ONNX Runtime's own words, not ours."""
    from onnx import TensorProto, helper, numpy_helper

    from serving.networks.engines.call import is_out_of_memory

    width = 2**24
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Tile", ["input", "times"], ["logits"])],
            "wide",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4 * width])],
            [numpy_helper.from_array(np.array([2**12, width], np.int64), "times")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=gpu.providers())
    with pytest.raises(Exception, match="memory") as raised:
        session.run(None, {"input": ROWS[:1]})
    assert is_out_of_memory(raised.value)


def test_a_skeleton_without_its_tensors_is_refused() -> None:
    """A tensor that nobody supplies must not become zeros."""
    skeleton = Skeleton(tiny_ensemble.graph(), {"linear.weight", "linear.bias"})
    with pytest.raises(StartupError, match="ONNX Runtime cannot load the network"):
        OnnxCpu(1).load(skeleton, {"linear.bias": tiny_ensemble.weights(0)["linear.bias"]})


class Library:
    """libcudart's call as its documentation describes it."""

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = 10 * 2**30, 80 * 2**30
        return 0


def test_the_runtimes_free_and_total_memory_become_used_and_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.networks.engines.cuda_runtime._open", Library)
    assert CudaRuntime().memory() == (70 * 2**30, 10 * 2**30)


@pytest.mark.gpu
def test_on_a_gpu_memory_is_told(gpu: OnnxCuda) -> None:
    used, free = gpu.memory()
    assert used > 0
    assert free > 0
