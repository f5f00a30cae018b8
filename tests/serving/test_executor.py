import threading

import numpy as np
import pytest

from serving.executor import Executor


def linear(member: int):  # type: ignore[no-untyped-def]
    return lambda inputs: np.stack([inputs[:, 0] * (member + 1), inputs[:, 1] + member], 1).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_each_member_runs_on_exactly_its_rows(threads: int, members: int, rows: int) -> None:
    executor = Executor([linear(m) for m in range(members)], classes=2, threads=threads)
    draw = np.random.default_rng(rows)
    inputs = draw.normal(size=(rows, 2)).astype(np.float32)
    for mask_MB in (np.ones((members, rows), bool), draw.random((members, rows)) < 0.5):
        mask_MB[0] |= ~mask_MB.any(0)
        logits_MBC = executor.run(inputs, mask_MB)
        expected = np.stack([linear(m)(inputs) for m in range(members)])
        np.testing.assert_array_equal(logits_MBC, np.where(mask_MB[:, :, None], expected, 0))
    executor.close()


def test_one_row_of_many_members_uses_every_thread() -> None:
    barrier = threading.Barrier(3)

    def member(inputs):  # type: ignore[no-untyped-def]
        barrier.wait(timeout=30)  # passes only if three run at once
        return np.zeros((len(inputs), 2), np.float32)

    executor = Executor([member] * 6, classes=2, threads=3)
    executor.run(np.zeros((1, 2), np.float32), np.ones((6, 1), bool))
    executor.close()


def test_many_rows_of_one_member_use_every_thread() -> None:
    barrier = threading.Barrier(3)

    def member(inputs):  # type: ignore[no-untyped-def]
        barrier.wait(timeout=30)
        return np.zeros((len(inputs), 2), np.float32)

    executor = Executor([member], classes=2, threads=3)
    executor.run(np.zeros((9, 2), np.float32), np.ones((1, 9), bool))
    executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_member_that_fails_fails_the_batch_and_not_the_executor(threads: int) -> None:
    broken = [True]

    def member(inputs):  # type: ignore[no-untyped-def]
        if broken[0]:
            raise RuntimeError("out of memory")
        return np.ones((len(inputs), 2), np.float32)

    executor = Executor([member] * 3, classes=2, threads=threads)
    with pytest.raises(RuntimeError, match="out of memory"):
        executor.run(np.zeros((1, 2), np.float32), np.ones((3, 1), bool))
    broken[0] = False
    assert executor.run(np.zeros((1, 2), np.float32), np.ones((3, 1), bool)).all()
    executor.close()
