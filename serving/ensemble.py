"""An ensemble that can answer: loads its members, runs a batch of requests through them."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.ensemble_pb2 import CLASSIFICATION
from protos.graph import DATATYPES
from protos.stored_ensemble import StoredEnsemble
from serving.batcher import Work
from serving.cascade import Cascade
from serving.combine import combine, energy
from serving.conformal import Conformal
from serving.errors import InvalidRequest, ServingError, StartupError
from serving.networks import members, probe
from serving.networks.curve import CurveGrid, NoCurve
from serving.networks.engines.engine import Engine
from serving.networks.engines.lanes import Steps
from serving.networks.executor import Executor
from serving.networks.members import Memory
from serving.networks.probe import PRECISION_TOLERANCE
from serving.outputs import FULL, Disclosure
from serving.policy import Policy, assign, draw_points
from serving.prediction import Prediction
from serving.telemetry.metrics import Metrics, ModelMetrics
from serving.telemetry.stage import Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ran:
    """What the networks said of a batch."""

    logits_MBC: NDArray[np.float32]  # 0 where a network did not run on a row
    mask_MB: NDArray[np.bool_]
    temperatures_MB: NDArray[np.float64]  # of the networks, [M, B] or [M, 1]
    temperature_B: NDArray[np.float64]  # of each row's mean


class Ensemble:
    """curve: what policy `curve` draws from, or why there is nothing.

    disclosure: how much of its answers is told, by whatever protocol.
    """

    def __init__(
        self,
        stored: StoredEnsemble,
        executor: Executor,
        metrics: ModelMetrics,
        curve: CurveGrid | NoCurve,
        disclosure: Disclosure = FULL,
    ) -> None:
        manifest = stored.manifest
        self.name = manifest.name
        self.version = manifest.version
        self.input_name = manifest.input.name
        self.input_datatype = manifest.input.datatype
        self.input_shape = tuple(manifest.input.shape)
        self.class_labels = list(manifest.class_labels)
        self.member_ids = [member.id for member in manifest.members]
        self._temperatures_M = np.array([member.temperature for member in manifest.members])
        self._temperature = manifest.temperature
        self.cascade = (
            Cascade(manifest.cascade, self.member_ids, self._temperatures_M) if manifest.HasField("cascade") else None
        )
        self.conformal = Conformal(manifest.conformal)
        self.disclosure = disclosure
        self._executor = executor
        self.metrics = metrics
        self.curve = curve

    def warm_up(self, max_batch_rows: int) -> None:
        """Runs every member on batches of every size that matters, so that no client pays for first allocations."""
        inputs = np.zeros((max_batch_rows, *self.input_shape), DATATYPES[self.input_datatype])
        self._executor.warm_up(inputs)
        if isinstance(self.curve, CurveGrid):
            self._executor.run_points(inputs[:1], [self.curve.at(0.5)])

    def execute(self, batch: Sequence[Work]) -> Steps[Sequence[Prediction | ServingError]]:
        """Answers a batch of requests, whatever their policies: each member runs once, on the rows that want it."""
        inputs = np.concatenate([work.inputs for work in batch]) if len(batch) > 1 else batch[0].inputs
        start = time.monotonic()
        ran = yield from self._run(batch, inputs)
        executed = time.monotonic()
        finite_B = _finite(ran.logits_MBC)
        ran.logits_MBC[:, ~finite_B] = 0.0  # their requests are refused below
        combined = combine(ran.logits_MBC, ran.mask_MB, ran.temperatures_MB, ran.temperature_B)
        energy_B = energy(ran.logits_MBC, ran.mask_MB) if any(work.choice.energy for work in batch) else None
        members_run_B = ran.mask_MB.sum(axis=0, dtype=np.int32)
        self._observe(batch, start, executed, int(members_run_B.sum()))
        self.metrics.quality.observe(combined, ran.mask_MB, finite_B)

        answers: list[Prediction | ServingError] = []
        end = 0
        for work in batch:
            rows = slice(end, end := end + work.rows)
            if not finite_B[rows].all():
                row = int(np.argmin(finite_B[rows]))
                answers.append(
                    InvalidRequest(
                        f"row {row}: the network's logits are not finite; expected an input within its range"
                    )
                )
                continue
            member_probs_MBC = combined.member_probs_MBC[:, rows]
            match work.choice.policy:
                case Policy.MEMBERS:
                    member_probs_MBC = member_probs_MBC[list(work.choice.members)]
                case Policy.RANDOM | Policy.CURVE:
                    member_probs_MBC = combined.probs_BC[None, rows]  # the one network that answered
            answers.append(
                Prediction(
                    probs_BC=combined.probs_BC[rows],
                    entropy_B=combined.entropy_B[rows],
                    mutual_information_B=combined.mutual_information_B[rows],
                    member_probs_BMC=member_probs_MBC.swapaxes(0, 1),
                    members_run_B=members_run_B[rows],
                    energy_B=None if energy_B is None else energy_B[rows],
                )
            )
        return answers

    def _observe(self, batch: Sequence[Work], start: float, executed: float, members_run: int) -> None:
        combined = time.monotonic()
        rows = sum(work.rows for work in batch)
        stages = (Stage("execute", start, executed, rows), Stage("combine", executed, combined, rows))
        for work in batch:
            work.stages += stages
        self.metrics.execute_seconds.observe(executed - start)
        self.metrics.combine_seconds.observe(combined - executed)
        self.metrics.statistics.ran(rows, executed - start, combined - executed)
        self.metrics.rows.inc(rows)
        self.metrics.members_run.inc(members_run)

    def _run(self, batch: Sequence[Work], inputs: NDArray[np.generic]) -> "Steps[_Ran]":
        masks = [assign(work.choice, work.rows, len(self.member_ids)) for work in batch]
        mask_MB = np.concatenate(masks, axis=1) if len(masks) > 1 else masks[0]
        policies = {work.choice.policy for work in batch}
        cascade = self.cascade if Policy.CASCADE in policies else None
        if cascade is not None:
            cascaded_B = _by_row(batch, [work.choice.policy is Policy.CASCADE for work in batch])
            cascade.start(mask_MB, cascaded_B)
        logits_MBC = yield from self._executor.steps(inputs, mask_MB)
        ran = _Ran(logits_MBC, mask_MB, self._temperatures_M[:, None], np.full(len(inputs), self._temperature))
        if cascade is not None:
            deadline_B = _by_row(batch, [math.inf if work.deadline is None else work.deadline for work in batch])
            further = cascade.go_on(self._executor.steps, inputs, logits_MBC, mask_MB, cascaded_B, deadline_B)
            fitted_B = yield from further
            ran.temperature_B[cascaded_B] = fitted_B[cascaded_B]
        if Policy.CURVE in policies:
            drawn_B = _by_row(batch, [work.choice.policy is Policy.CURVE for work in batch])
            return (yield from self._with_drawn(ran, inputs, drawn_B))
        return ran

    def _with_drawn(self, ran: "_Ran", inputs: NDArray[np.generic], drawn_B: NDArray[np.bool_]) -> "Steps[_Ran]":
        """The networks that are drawn from the curve, each for one row, stand as one more member."""
        assert isinstance(self.curve, CurveGrid)  # the request was parsed
        points = [self.curve.at(t) for t in draw_points(int(drawn_B.sum()))]
        logits_BC = np.zeros(ran.logits_MBC.shape[1:], np.float32)
        logits_BC[drawn_B] = yield from self._executor.steps_at(inputs[drawn_B], points)
        temperatures_B = np.ones(len(inputs))
        temperatures_B[drawn_B] = [point.temperature for point in points]
        members_MB = np.broadcast_to(ran.temperatures_MB, ran.mask_MB.shape)
        return _Ran(
            np.concatenate([ran.logits_MBC, logits_BC[None]]),
            np.concatenate([ran.mask_MB, drawn_B[None]]),
            np.concatenate([members_MB, temperatures_B[None]]),
            ran.temperature_B,
        )

    def close(self) -> None:
        """Lets go of the networks; the engine is its owner's."""
        self._executor.close()
        self.metrics.close()


def _finite(logits_MBC: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[B]: whether all logits of a row are numbers."""
    return np.asarray(np.isfinite(logits_MBC).all(axis=(0, 2)))


def _by_row(batch: Sequence[Work], values: Sequence[Any]) -> NDArray[Any]:
    """A value for each request, as one for each row."""
    return np.repeat(values, [work.rows for work in batch])


def load(
    stored: StoredEnsemble,
    engine: Engine,
    metrics: Metrics,
    memory: Memory = Memory.FAST,
    forced_policy: Policy | None = None,
    disclosure: Disclosure = FULL,
    precision_tolerance: float = PRECISION_TOLERANCE,
) -> Ensemble:
    """Loads a validated directory into the engine, and tries it on its probe rows. Raises StartupError.

    forced_policy: answers whatever is asked, so only what it needs is loaded. precision_tolerance: of `probe.check`.
    """
    if stored.manifest.task != CLASSIFICATION:
        raise StartupError(
            f"'{stored.manifest.name}' predicts the next token, which this server does not answer; "
            f"`thalweg-train export --standalone` writes files for ONNX Runtime"
        )
    if forced_policy is Policy.CASCADE and not stored.manifest.HasField("cascade"):
        raise StartupError(f"--policy cascade: the manifest of '{stored.manifest.name}' has no cascade")
    curve = _curve(stored, forced_policy)
    if forced_policy is Policy.CURVE:
        memory = Memory.COMPACT
    together = forced_policy in (None, Policy.MEAN)
    loaded = members.load(stored, engine, memory, curve if isinstance(curve, CurveGrid) else None, together)
    manifest = stored.manifest
    executor = Executor(engine, loaded, len(manifest.class_labels))
    probe.check(stored, executor, engine, precision_tolerance)
    model_metrics = metrics.model(manifest.name, manifest.version, manifest.class_labels, len(manifest.members))
    return Ensemble(stored, executor, model_metrics, curve, disclosure)


def _curve(stored: StoredEnsemble, forced_policy: Policy | None) -> CurveGrid | NoCurve:
    """Raises StartupError if there is none and the server was started to answer from it."""
    if forced_policy not in (None, Policy.CURVE):
        return NoCurve(f"this server answers every request with policy '{forced_policy}'")
    try:
        return CurveGrid(stored)
    except NoCurve as error:
        if forced_policy is Policy.CURVE:
            raise StartupError(f"--policy curve: {error}") from error
        return error.with_traceback(None)  # whose frames would keep all of `stored` in memory
