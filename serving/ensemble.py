"""An ensemble that can answer: loads its members, runs a batch of requests through them."""

import logging
import time
from collections.abc import Sequence

import numpy as np

from protos.ensemble_pb2 import CLASSIFICATION
from protos.graph import DATATYPES
from protos.stored_ensemble import StoredEnsemble
from serving import members
from serving.batcher import Work
from serving.combine import combine
from serving.engines.engine import Engine
from serving.errors import InvalidRequest, ServingError, StartupError
from serving.executor import Executor
from serving.metrics import Metrics, ModelMetrics
from serving.policy import Policy, assign
from serving.prediction import Prediction
from serving.stage import Stage

logger = logging.getLogger(__name__)


class Ensemble:
    def __init__(self, stored: StoredEnsemble, executor: Executor, metrics: ModelMetrics) -> None:
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

    def warm_up(self, max_batch_rows: int) -> None:
        """Runs every member on batches of every size that matters, so that no client pays for first allocations."""
        self._executor.warm_up(np.zeros((max_batch_rows, *self.input_shape), DATATYPES[self.input_datatype]))

    def execute(self, batch: Sequence[Work]) -> list[Prediction | ServingError]:
        """Answers a batch of requests, whatever their policies: each member runs once, on the rows that want it."""
        members = len(self.member_ids)
        inputs = np.concatenate([work.inputs for work in batch]) if len(batch) > 1 else batch[0].inputs
        mask_MB = np.concatenate([assign(work.choice, work.rows, members) for work in batch], axis=1)

        start = time.monotonic()
        logits_MBC = self._executor.run(inputs, mask_MB)
        executed = time.monotonic()
        finite_B = np.asarray(np.isfinite(logits_MBC).all(axis=(0, 2)))
        logits_MBC[:, ~finite_B] = 0.0  # their requests are refused below
        combined = combine(logits_MBC, mask_MB, self._temperatures_M, self._temperature)
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
                case Policy.RANDOM:
                    member_probs_MBC = combined.probs_BC[None, rows]  # the one member that answered
            answers.append(
                Prediction(
                    probs_BC=combined.probs_BC[rows],
                    entropy_B=combined.entropy_B[rows],
                    mutual_information_B=combined.mutual_information_B[rows],
                    member_probs_BMC=member_probs_MBC.swapaxes(0, 1),
                )
            )
        return answers

    def close(self) -> None:
        """Lets go of the networks; the engine is its owner's."""
        self._executor.close()
        self.metrics.close()


def load(stored: StoredEnsemble, engine: Engine, metrics: Metrics) -> Ensemble:
    """Loads the members of a validated directory into the engine. Raises StartupError."""
    if stored.manifest.task != CLASSIFICATION:
        raise StartupError(
            f"'{stored.manifest.name}' predicts the next token, which this server does not answer; "
            f"`thalweg-train export --standalone` writes files for ONNX Runtime"
        )
    manifest = stored.manifest
    executor = Executor(engine, members.load(stored, engine), len(manifest.class_labels))
    model_metrics = metrics.model(manifest.name, manifest.version, manifest.class_labels, len(manifest.members))
    return Ensemble(stored, executor, model_metrics)
