import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", reason="extra [openvino] is not installed")

from serving.errors import StartupError
from serving.networks import members
from serving.networks.engines.openvino_cpu import OpenVinoCpu, pieces
from serving.networks.executor import Executor
from tests import tiny_ensemble

ROWS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_equal_the_definition(tmp_path: Path, threads: int) -> None:
    stored = tiny_ensemble.write(tmp_path / "tiny")
    engine = OpenVinoCpu(threads, "fp32")
    executor = Executor(engine, members.load(stored, engine), tiny_ensemble.CLASSES)
    for rows in (9, 1, 4):
        logits_MBC = executor.run(ROWS[:rows], np.ones((4, rows), bool))
        np.testing.assert_allclose(logits_MBC, tiny_ensemble.member_logits(ROWS[:rows]), atol=1e-5)
    engine.close()


def test_rows_in_any_number_are_answered_in_pieces(tmp_path: Path) -> None:
    stored = tiny_ensemble.write(tmp_path / "tiny")
    engine = OpenVinoCpu(2, "fp32")
    loaded = members.load(stored, engine)
    assert [group.members for group in loaded.groups] == [slice(0, 2), slice(2, 4)]
    many = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    expected = tiny_ensemble.member_logits(many)
    for rows in range(1, 41):
        for group in loaded.groups:
            found = group.network(many[:rows], {})
            np.testing.assert_allclose(found, expected[group.members, :rows], atol=1e-5)
    engine.close()


def test_pieces_hold_each_row_once() -> None:
    assert [list(pieces(rows)) for rows in (1, 5, 13, 16, 39)] == [[1], [4, 1], [12, 1], [16], [16, 16, 4, 3]]
    assert all(sum(pieces(rows)) == rows for rows in range(1, 200))


def test_a_group_may_be_asked_by_several_threads_at_once(tmp_path: Path) -> None:
    stored = tiny_ensemble.write(tmp_path / "tiny")
    engine = OpenVinoCpu(1, "fp32")
    group = members.load(stored, engine).groups[0]
    draw = np.random.default_rng(2)
    batches = [draw.normal(size=(rows, 4)).astype(np.float32) for rows in (1, 3, 8, 3) * 25]
    with ThreadPoolExecutor(4) as pool:
        for rows, found in zip(batches, pool.map(lambda rows: group.network(rows, {}), batches), strict=True):
            np.testing.assert_allclose(found, tiny_ensemble.member_logits(rows), atol=1e-5)
    engine.close()


def test_one_member_on_several_threads_equals_the_definition(tmp_path: Path) -> None:
    """As a cascade's stages are run: each thread gets some of the rows, and a request of its own."""
    stored = tiny_ensemble.write(tmp_path / "tiny")
    engine = OpenVinoCpu(3, "fp32")
    executor = Executor(engine, members.load(stored, engine), tiny_ensemble.CLASSES)
    expected = tiny_ensemble.member_logits(ROWS)
    for member in (2, 0, 2):
        mask_MB = np.arange(4)[:, None] == np.full(9, member)
        np.testing.assert_allclose(executor.run(ROWS, mask_MB)[member], expected[member], atol=1e-5)
    engine.close()


def test_rows_are_read_as_they_lie_and_answers_outlive_the_next_call(tmp_path: Path) -> None:
    stored = tiny_ensemble.write(tmp_path / "tiny")
    engine = OpenVinoCpu(1, "fp32")
    network = members.load(stored, engine).members[0].network
    read_only = np.frombuffer(ROWS.tobytes(), np.float32).reshape(9, 4)
    strided = np.repeat(ROWS, 2, axis=0)[::2]
    answers = [network(rows, {}) for rows in (read_only, strided, np.asfortranarray(ROWS))]
    network(np.zeros_like(ROWS), {})
    for logits_BC in answers:
        np.testing.assert_allclose(logits_BC, tiny_ensemble.member_logits(ROWS)[0], atol=1e-5)
    engine.close()


def test_the_first_calls_of_a_process_may_come_at_once(tmp_path: Path) -> None:
    """OpenVINO hangs in some processes where two do; the engine makes one before them."""
    tiny_ensemble.write(tmp_path / "tiny")
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS, str(tmp_path / "tiny")], timeout=60, check=False)
    assert done.returncode == 0


FIRST_CALLS = """
import sys
from pathlib import Path
import numpy as np
from protos.validate import validate
from serving.networks import members
from serving.networks.engines.openvino_cpu import OpenVinoCpu
from serving.networks.executor import Executor

engine = OpenVinoCpu(4, "fp32")
executor = Executor(engine, members.load(validate(Path(sys.argv[1])), engine), 3)
executor.run(np.zeros((1, 4), np.float32), np.ones((4, 1), bool))
"""


def test_a_precision_that_the_cpu_lacks_is_refused_though_openvino_would_take_another(tmp_path: Path) -> None:
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    lacking = [precision for precision in ("fp16", "bf16") if precision.upper() not in capabilities]
    if not lacking:
        pytest.skip("this CPU has both")
    stored = tiny_ensemble.write(tmp_path / "tiny")
    for precision in lacking:
        with pytest.raises(StartupError, match=f"--precision {precision}: on this CPU OpenVINO computes in"):
            members.load(stored, OpenVinoCpu(1, precision))
