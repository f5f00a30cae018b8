import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from protos.stored_ensemble import Tensors
from serving.networks.engines.call import Feeds, Network
from serving.networks.engines.engine import Engine
from serving.networks.executor import Executor
from serving.networks.members import Loaded, LoadedGroup, LoadedMember
from serving.networks.skeleton import Skeleton


class FunctionEngine(Engine):
    """Runs functions in place of networks."""

    def __init__(self, threads: int) -> None:
        super().__init__("functions", threads)

    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        raise NotImplementedError


@contextmanager
def executor_of(networks: Sequence[Network], threads: int, groups: Sequence[LoadedGroup] = ()) -> Iterator[Executor]:
    engine = FunctionEngine(threads)
    yield Executor(engine, Loaded([LoadedMember(network) for network in networks], list(groups)), classes=2)
    engine.close()


def linear(member: int):  # type: ignore[no-untyped-def]
    return lambda inputs, feeds: np.stack([inputs[:, 0] * (member + 1), inputs[:, 1] + member], 1).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_each_member_runs_on_exactly_its_rows(threads: int, members: int, rows: int) -> None:
    draw = np.random.default_rng(rows)
    inputs = draw.normal(size=(rows, 2)).astype(np.float32)
    with executor_of([linear(m) for m in range(members)], threads) as executor:
        for mask_MB in (np.ones((members, rows), bool), draw.random((members, rows)) < 0.5):
            mask_MB[0] |= ~mask_MB.any(0)
            logits_MBC = executor.run(inputs, mask_MB)
            expected = np.stack([linear(m)(inputs, {}) for m in range(members)])
            np.testing.assert_array_equal(logits_MBC, np.where(mask_MB[:, :, None], expected, 0))


@pytest.mark.parametrize(
    ("wanted", "answering"),
    [
        ([0, 1, 2, 3, 4], ["0-1", "2-4"]),
        ([0, 1, 3], ["0-1", 3]),
        ([1, 2, 3, 4], [1, "2-4"]),
        ([0, 2], [0, 2]),
    ],
)
@pytest.mark.parametrize("some_rows", [False, True])
def test_a_group_answers_where_all_of_its_members_are_wanted(
    wanted: list[int], answering: list[int | str], some_rows: bool
) -> None:
    asked: list[int | str] = []

    def noting(name: int | str, network: Network) -> Network:
        return lambda inputs, feeds: [asked.append(name), network(inputs, feeds)][1]  # type: ignore[func-returns-value]

    def group(first: int, last: int) -> LoadedGroup:
        def together(inputs, feeds):  # type: ignore[no-untyped-def]
            return np.stack([linear(m)(inputs, feeds) for m in range(first, last + 1)])

        return LoadedGroup(slice(first, last + 1), noting(f"{first}-{last}", together))

    inputs = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    mask_MB = np.zeros((5, 6), bool)
    mask_MB[wanted] = [True, False, True, True, False, True] if some_rows else True
    expected = np.where(mask_MB[:, :, None], np.stack([linear(m)(inputs, {}) for m in range(5)]), 0)
    networks = [noting(m, linear(m)) for m in range(5)]
    with executor_of(networks, 1, [group(0, 1), group(2, 4)]) as executor:
        np.testing.assert_array_equal(executor.run(inputs, mask_MB), expected)
        assert sorted(asked, key=str) == sorted(answering, key=str)
        asked.clear()
        np.testing.assert_array_equal(executor.run(inputs, mask_MB, fused=False), expected)
        assert asked == wanted


def test_one_row_of_many_members_uses_every_thread() -> None:
    barrier = threading.Barrier(3)

    def member(inputs, feeds):  # type: ignore[no-untyped-def]
        barrier.wait(timeout=30)  # passes only if three run at once
        return np.zeros((len(inputs), 2), np.float32)

    with executor_of([member] * 6, threads=3) as executor:
        executor.run(np.zeros((1, 2), np.float32), np.ones((6, 1), bool))


def test_many_rows_of_one_member_use_every_thread() -> None:
    barrier = threading.Barrier(3)

    def member(inputs, feeds):  # type: ignore[no-untyped-def]
        barrier.wait(timeout=30)
        return np.zeros((len(inputs), 2), np.float32)

    with executor_of([member], threads=3) as executor:
        executor.run(np.zeros((9, 2), np.float32), np.ones((1, 9), bool))


@pytest.mark.parametrize(("rows", "threads"), [(9, 4), (3, 8), (1, 2), (8, 2)])
def test_rows_are_split_evenly_and_never_into_nothing(rows: int, threads: int) -> None:
    seen = []

    def member(inputs, feeds):  # type: ignore[no-untyped-def]
        seen.append(len(inputs))
        return np.zeros((len(inputs), 2), np.float32)

    with executor_of([member], threads) as executor:
        executor.run(np.zeros((rows, 2), np.float32), np.ones((1, rows), bool))
    assert sum(seen) == rows
    assert len(seen) == min(rows, threads)
    assert max(seen) - min(seen) <= 1


def test_members_that_want_the_same_rows_get_the_same_array() -> None:
    """So a GPU copies them once."""
    seen = []

    def member(inputs, feeds):  # type: ignore[no-untyped-def]
        seen.append(inputs)
        return np.zeros((len(inputs), 2), np.float32)

    mask_MB = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 1, 1]], bool)
    with executor_of([member] * 4, threads=1) as executor:
        executor.run(np.zeros((3, 2), np.float32), mask_MB)
    assert [len(inputs) for inputs in seen] == [3, 3, 2, 2]
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_member_that_fails_fails_the_batch_and_not_the_executor(threads: int) -> None:
    broken = [True]

    def member(inputs, feeds):  # type: ignore[no-untyped-def]
        if broken[0]:
            raise RuntimeError("no such kernel")
        return np.ones((len(inputs), 2), np.float32)

    with executor_of([member] * 3, threads) as executor:
        with pytest.raises(RuntimeError, match="no such kernel"):
            executor.run(np.zeros((4, 2), np.float32), np.ones((3, 4), bool))
        broken[0] = False
        assert executor.run(np.zeros((4, 2), np.float32), np.ones((3, 4), bool)).all()


# As they were reported: onnxruntime #16307; the others as CUDA, cuBLAS and C++ word them.
OUT_OF_MEMORY = [
    RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
        "Name:'/conv1/Conv' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 "
        "onnxruntime::BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 939524096"
    ),
    RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc"
    ),
    RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[-30:])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fit", [1, 3])
def test_a_batch_that_does_not_fit_in_memory_is_halved_until_it_does(error: Exception, threads: int, fit: int) -> None:
    ran: list[int] = []

    def member(inputs: np.ndarray, feeds: Feeds) -> np.ndarray:
        if len(inputs) > fit:
            raise error
        ran.append(len(inputs))
        return np.asarray(linear(2)(inputs, feeds))

    inputs = np.random.default_rng(0).normal(size=(13, 2)).astype(np.float32)
    with executor_of([member, linear(1)], threads) as executor:
        logits_MBC = executor.run(inputs, np.ones((2, 13), bool))
    np.testing.assert_array_equal(logits_MBC, np.stack([linear(2)(inputs, {}), linear(1)(inputs, {})]))
    assert sum(ran) == 13
    assert max(ran) <= fit


def test_a_single_row_that_does_not_fit_is_an_error() -> None:
    def member(inputs: np.ndarray, feeds: Feeds) -> np.ndarray:
        raise OUT_OF_MEMORY[0]

    with executor_of([member], 1) as executor, pytest.raises(RuntimeError, match="Failed to allocate memory"):
        executor.run(np.zeros((4, 2), np.float32), np.ones((1, 4), bool))


def test_another_error_is_not_tried_again_in_halves() -> None:
    calls = []

    def member(inputs: np.ndarray, feeds: Feeds) -> np.ndarray:
        calls.append(len(inputs))
        raise RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : indices element out of data bounds")

    with executor_of([member], 1) as executor, pytest.raises(RuntimeError, match="out of data bounds"):
        executor.run(np.zeros((4, 2), np.float32), np.ones((1, 4), bool))
    assert calls == [4]
