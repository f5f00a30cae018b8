"""Compares what an engine answers with what was trained, on the probe rows of the ensemble's directory."""

import logging

import numpy as np
from numpy.typing import NDArray

from protos.ensemble_pb2 import EnsembleManifest
from protos.graph import DATATYPES
from protos.stored_ensemble import Probe, StoredEnsemble
from serving.combine import member_probs
from serving.errors import StartupError
from serving.networks.engines.engine import Engine
from serving.networks.executor import Executor

logger = logging.getLogger(__name__)

PRECISION_TOLERANCE = 0.02  # of probabilities
FP32_TOLERANCE = 1e-3  # far above what another order of summation makes of fp32, far below what anybody would see
FP32_RUNS = 64  # of rows, by all members together, or one each


def check(stored: StoredEnsemble, executor: Executor, engine: Engine, tolerance: float) -> None:
    """Raises StartupError if a member's probability of a class is further off than the tolerance.

    tolerance: of reduced precision, in which every member answers every row; fp32 has its own, and rows that are dealt
    out (`deal`). Without probe rows fp32 passes if every member runs on zeros, and nothing else does.
    """
    manifest, probe = stored.manifest, stored.probe
    if probe is None:
        if engine.precision != "fp32":
            raise StartupError(
                f"--precision {engine.precision}: '{manifest.name}' has no probe rows to compare with; "
                f"expected an ensemble that was exported with export.probe_rows of 1 or more"
            )
        zeros = np.zeros((1, *manifest.input.shape), DATATYPES[manifest.input.datatype])
        for fused in executor.ways:
            executor.run(zeros, np.ones((len(manifest.members), 1), np.bool_), fused)
        return
    allowed = FP32_TOLERANCE if engine.precision == "fp32" else tolerance
    for fused in executor.ways:
        _compare(manifest, probe, executor, engine, allowed, fused)


def _compare(
    manifest: EnsembleManifest, probe: Probe, executor: Executor, engine: Engine, allowed: float, fused: bool
) -> None:
    temperatures_M11 = np.array([member.temperature for member in manifest.members])[:, None, None]
    members, rows = len(manifest.members), len(probe.inputs)
    mask_MN = np.ones((members, rows), np.bool_)
    if engine.precision == "fp32":
        mask_MN = deal(members, rows, together=fused)
    logits_MNC = _run(executor, engine, probe.inputs, mask_MN, fused)
    found_MNC, expected_MNC = (member_probs(logits, temperatures_M11) for logits in (logits_MNC, probe.logits_MNC))
    # An answer that is not finite is off as well.
    difference_MNC = np.nan_to_num(np.abs(found_MNC - expected_MNC), nan=1.0) * mask_MN[:, :, None]
    worst = float(difference_MNC.max())
    logger.info(
        "probe rows=%d runs=%d fused=%s precision=%s worst_difference=%.2g",
        rows, mask_MN.sum(), fused, engine.precision, worst,
    )  # fmt: skip
    if worst > allowed:
        m, n, c = np.unravel_index(int(difference_MNC.argmax()), difference_MNC.shape)
        hint = "" if engine.precision == "fp32" else " (--precision-tolerance)"
        raise StartupError(
            f"in {engine.precision} on {engine.name}, member '{manifest.members[int(m)].id}' of '{manifest.name}' "
            f"gives class '{manifest.class_labels[int(c)]}' of probe row {n} the probability {found_MNC[m, n, c]:.4f}; "
            f"expected {expected_MNC[m, n, c]:.4f} within {allowed:g}{hint}"
        )


def deal(members: int, rows: int, together: bool = False) -> NDArray[np.bool_]:
    """[M, N]: which member answers which row. Each the same number, one at least, starting where the last one ended.

    together: all the first rows, as fused members answer.

    fp32 is off by the order of summation or by a wrong graph, kernel or weight, and the latter shows in any row: fifty
    members on sixteen rows each would take as long as everything else before a server is ready.
    """
    each = min(rows, max(FP32_RUNS // members, 1))
    mask_MN = np.zeros((members, rows), np.bool_)
    if together:
        mask_MN[:, :each] = True
    else:
        mask_MN[np.repeat(np.arange(members), each), np.arange(members * each) % rows] = True
    return mask_MN


def _run(
    executor: Executor, engine: Engine, inputs: NDArray[np.generic], mask_MN: NDArray[np.bool_], fused: bool
) -> NDArray[np.float32]:
    """[M, N, C], in batches that the engine takes; 0 where a member does not answer."""
    size = engine.most_rows(len(inputs))
    runs = [
        executor.run(inputs[start : start + size], mask_MN[:, start : start + size], fused)
        for start in range(0, len(inputs), size)
    ]
    return np.concatenate(runs, axis=1)
