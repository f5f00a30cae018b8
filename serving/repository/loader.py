"""From verified bytes to a model that can be asked: members made, sessions opened, everything run once."""

import asyncio
import logging
import math

from protos.stored_ensemble import StoredEnsemble
from serving import ensemble as ensembles
from serving.batcher import Batcher
from serving.ensemble import Ensemble
from serving.near_duplicates import LEAST_VALUES, NearDuplicates
from serving.networks import device
from serving.networks.cpu import usable_cpus
from serving.networks.members import Memory
from serving.networks.memory import give_back
from serving.repository.models import ServedModel
from serving.settings import Settings
from serving.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Loader:
    """All models that it loads share the lanes of one engine, and take turns, a batch each."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._engine = device.choose(
            settings.device,
            settings.engine,
            settings.precision,
            threads=settings.threads or usable_cpus(),
            max_batch_rows=settings.max_batch_rows,
            compact=settings.memory == Memory.COMPACT,
            cuda_graphs=settings.cuda_graphs,
        )
        metrics.watch(self._engine)

    async def load(self, stored: StoredEnsemble) -> ServedModel:
        """Loads and warms in a thread. Raises StartupError."""
        ensemble = await asyncio.to_thread(self._load, stored)
        settings = self._settings
        limits = settings.max_batch_rows, settings.max_queue_rows
        batcher = Batcher(ensemble.execute, self._engine.lanes, *limits, ensemble.metrics)
        return ServedModel(ensemble, batcher, self._near_duplicates(ensemble))

    def _near_duplicates(self, ensemble: Ensemble) -> NearDuplicates | None:
        if not self._settings.near_duplicates:
            return None
        if (values := math.prod(ensemble.input_shape)) < LEAST_VALUES:
            logger.warning("near duplicates are not counted model=%s values_in_a_row=%d", ensemble.name, values)
            return None
        return NearDuplicates(values, ensemble.metrics.near_duplicate_rows)

    def _load(self, stored: StoredEnsemble) -> Ensemble:
        engine = self._engine
        ensemble = ensembles.load(
            stored,
            engine,
            self._metrics,
            Memory(self._settings.memory),
            self._settings.forced_policy,
            self._settings.disclosure,
            self._settings.precision_tolerance,
        )
        give_back()
        logger.info(
            "loaded model=%s version=%s members=%d engine=%s threads=%d",
            ensemble.name, ensemble.version, len(ensemble.member_ids), engine.name, engine.threads,
        )  # fmt: skip
        try:
            ensemble.warm_up(self._settings.max_batch_rows)
        except BaseException:
            ensemble.close()
            raise
        return ensemble
