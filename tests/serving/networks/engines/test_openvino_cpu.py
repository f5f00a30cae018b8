from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", reason="extra [openvino] is not installed")

from serving.errors import StartupError
from serving.networks import members
from serving.networks.engines.openvino_cpu import OpenVinoCpu
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
