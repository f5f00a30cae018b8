"""An ensemble that can answer: loads its members, runs a batch of requests through them."""

import logging
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protos.ensemble_pb2 import CLASSIFICATION
from protos.graph import DATATYPES
from protos.stored_ensemble import StoredEnsemble
from serving import members
from serving.batcher import Work
from serving.combine import combine
from serving.curve import CurveGrid, NoCurve
from serving.engines.engine import Engine
from serving.errors import InvalidRequest, ServingError, StartupError
from serving.executor import Executor
from serving.members import Memory
from serving.metrics import Metrics, ModelMetrics
from serving.policy import Policy, assign, draw_points
from serving.prediction import Prediction
from serving.stage import Stage

logger = logging.getLogger(__name__)


class Ensemble:
    """curve: what policy `curve` draws from, or why there is nothing."""

    def __init__(
        self, stored: StoredEnsemble, executor: Executor, metrics: ModelMetrics, curve: CurveGrid | NoCurve
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
        self._executor = executor
        self.metrics = metrics
        self.curve = curve

    def warm_up(self, max_batch_rows: int) -> None:
        """Runs every member on batches of every size that matters, so that no client pays for first allocations."""
        inputs = np.zeros((max_batch_rows, *self.input_shape), DATATYPES[self.input_datatype])
        self._executor.warm_up(inputs)
        if isinstance(self.curve, CurveGrid):
            self._executor.run_points(inputs[:1], [self.curve.at(0.5)])

    def execute(self, batch: Sequence[Work]) -> list[Prediction | ServingError]:
        """Answers a batch of requests, whatever their policies: each member runs once, on the rows that want it."""
        members = len(self.member_ids)
        inputs = np.concatenate([work.inputs for work in batch]) if len(batch) > 1 else batch[0].inputs
        mask_MB = np.concatenate([assign(work.choice, work.rows, members) for work in batch], axis=1)

        start = time.monotonic()
        logits_MBC = self._executor.run(inputs, mask_MB)
        temperatures_M = self._temperatures_M
        if (drawn := [work.choice.policy is Policy.CURVE for work in batch]) and any(drawn):
            # The networks drawn for these rows stand as one more member.
            drawn_B = np.repeat(drawn, [work.rows for work in batch])
            drawn_BC = np.zeros(logits_MBC.shape[1:], np.float32)
            drawn_BC[drawn_B] = self._draw(inputs[drawn_B])
            logits_MBC = np.concatenate([logits_MBC, drawn_BC[None]])
            mask_MB = np.concatenate([mask_MB, drawn_B[None]])
            temperatures_M = np.append(temperatures_M, 1.0)
        executed = time.monotonic()
        finite_B = np.asarray(np.isfinite(logits_MBC).all(axis=(0, 2)))
        logits_MBC[:, ~finite_B] = 0.0  # their requests are refused below
        combined = combine(logits_MBC, mask_MB, temperatures_M, self._temperature)
        combined_at = time.monotonic()
        self.metrics.execute_seconds.observe(executed - start)
        self.metrics.combine_seconds.observe(combined_at - executed)
        self.metrics.statistics.ran(len(inputs), executed - start, combined_at - executed)
        for work in batch:
            work.stages.append(Stage("execute", start, executed, len(inputs)))
            work.stages.append(Stage("combine", executed, combined_at, len(inputs)))
        self.metrics.rows.inc(len(inputs))
        self.metrics.members_run.inc(int(mask_MB.sum()))
        self.metrics.quality.observe(combined, mask_MB, finite_B)

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
                )
            )
        return answers

    def _draw(self, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [B, C], tempered, each row's by a network drawn from the curve for it alone."""
        assert isinstance(self.curve, CurveGrid)  # the request was parsed
        points = [self.curve.at(t) for t in draw_points(len(inputs))]
        temperatures_B1 = np.array([[point.temperature] for point in points], np.float32)
        return self._executor.run_points(inputs, points) / temperatures_B1

    def close(self) -> None:
        """Lets go of the networks; the engine is its owner's."""
        self._executor.close()
        self.metrics.close()


def load(
    stored: StoredEnsemble,
    engine: Engine,
    metrics: Metrics,
    memory: Memory = Memory.FAST,
    forced_policy: Policy | None = None,
) -> Ensemble:
    """Loads the networks of a validated directory into the engine. Raises StartupError.

    forced_policy: answers whatever is asked, so only what it needs is loaded.
    """
    if stored.manifest.task != CLASSIFICATION:
        raise StartupError(
            f"'{stored.manifest.name}' predicts the next token, which this server does not answer; "
            f"`thalweg-train export --standalone` writes files for ONNX Runtime"
        )
    curve = _curve(stored, forced_policy)
    if forced_policy is Policy.CURVE:
        memory = Memory.COMPACT
    loaded = members.load(stored, engine, memory, curve if isinstance(curve, CurveGrid) else None)
    manifest = stored.manifest
    executor = Executor(engine, loaded, len(manifest.class_labels))
    model_metrics = metrics.model(manifest.name, manifest.version, manifest.class_labels, len(manifest.members))
    return Ensemble(stored, executor, model_metrics, curve)


def _curve(stored: StoredEnsemble, forced_policy: Policy | None) -> CurveGrid | NoCurve:
    """Raises StartupError if there is none and the server was started to answer from it."""
    if forced_policy not in (None, Policy.CURVE):
        return NoCurve(f"this server answers every request with policy '{forced_policy}'")
    try:
        return CurveGrid(stored)
    except NoCurve as error:
        if forced_policy is Policy.CURVE:
            raise StartupError(f"--policy curve: {error}") from error
        return error
