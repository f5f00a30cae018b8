"""Names, versions and holds; and models that share a device, with a fake executor: no sleeps."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from serving.batcher import DEFAULT_PRIORITY, Batcher, Work
from serving.errors import NotReady, ServingError, UnknownModel
from serving.networks.engines.lanes import Lanes, Steps
from serving.policy import Choice, Policy
from serving.prediction import Prediction
from serving.repository.models import Repository, ServedModel, age
from serving.telemetry.metrics import Metrics
from tests.serving.test_batcher import TIMEOUT_S, Engine, echo, rows

MEAN = Choice(Policy.MEAN)


@dataclass
class Ensemble:
    """What a repository needs of one."""

    name: str
    version: str
    closed: bool = False
    order: list[str] = field(default_factory=list)

    def execute(self, batch: Sequence[Work]) -> Steps[list[Prediction | ServingError]]:
        self.order.append(self.name)
        yield []
        return [echo(work) for work in batch]

    def close(self) -> None:
        self.closed = True


LANE = Lanes(1)


def served(name: str, version: str) -> ServedModel:
    ensemble = Ensemble(name, version)
    return ServedModel(ensemble, Batcher(ensemble.execute, LANE, 4, 8, Metrics().model(name, version, ["a"], 1)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "versions",
    [
        ["1", "2", "9", "10", "100"],
        ["1.2", "1.9", "1.10", "1.10.1", "2"],
        ["2026-11-09", "2026-11-23", "2026-12-01"],
        ["alpha", "beta", "1"],
        ["v1", "v2", "v10"],
        ["1.0", "1.0-rc1", "1.1"],
        ["01", "1"],
    ],
)
def test_the_latest_version_is_the_greatest_number(versions: list[str]) -> None:
    assert all(age(earlier) < age(later) for earlier, later in pairwise(versions))


async def test_latest_by_default_and_any_by_request() -> None:
    repository = Repository()
    models = {(name, version): served(name, version) for name in ("a", "b") for version in ("2", "10", "9")}
    for model in models.values():
        assert repository.add(model) is None
    assert repository.find("a") is models["a", "10"]
    assert repository.find("b", "9") is models["b", "9"]
    assert repository.versions("a") == ["2", "9", "10"]
    with pytest.raises(UnknownModel, match="unknown model 'c'; this server has 'a', 'b'"):
        repository.find("c")
    with pytest.raises(UnknownModel, match="unknown version '3' of 'a'; this server has '2', '9', '10'"):
        repository.find("a", "3")
    await repository.close()
    assert all(model.ensemble.closed for model in models.values())  # type: ignore[attr-defined]


async def test_what_is_announced_is_known_and_not_ready() -> None:
    repository = Repository()
    for version in ("1", "2"):
        repository.announce("a", version)
    with pytest.raises(NotReady, match="'a' is still loading"):
        repository.find("a")
    repository.add(served("a", "1"))
    assert repository.find("a").ensemble.version == "1"
    with pytest.raises(NotReady):
        repository.find("a", "2")
    await repository.close()


async def test_a_replaced_model_closes_after_its_last_request() -> None:
    repository = Repository()
    old, new = served("a", "1"), served("a", "1")
    repository.add(old)
    with old.held(), old.held():
        assert repository.add(new) is old
        assert repository.find("a") is new
        closing = asyncio.create_task(old.close())
        await asyncio.sleep(0)
        answer = await old.batcher.submit(rows(5.0), MEAN, None)
        assert answer.probs_BC.tolist() == [[5.0]]
        assert not old.ensemble.closed  # type: ignore[attr-defined]
    await asyncio.wait_for(closing, TIMEOUT_S)
    assert old.ensemble.closed  # type: ignore[attr-defined]
    await repository.close()


async def test_a_batcher_that_fails_is_told() -> None:
    repository = Repository()
    model = served("a", "1")
    repository.add(model)
    failed = asyncio.create_task(repository.failed())
    # Rows that cannot be counted: an error of ours, outside of what a request can do.
    model.batcher._queues[DEFAULT_PRIORITY].append(Work(None, MEAN, None, asyncio.get_running_loop().create_future()))  # type: ignore[arg-type]
    model.batcher._lanes.offer(model.batcher._take)
    with pytest.raises(TypeError):
        await asyncio.wait_for(failed, TIMEOUT_S)
    await repository.close()


async def test_models_share_the_device_a_batch_each_in_turn() -> None:
    """A busy model with ten batches in its queue does not keep another one, which has one, waiting for all of them."""
    metrics = Metrics().model("tiny", "1", ["a"], 1)
    engine = Engine()
    busy, other = (Batcher(engine, LANE, 1, 16, metrics) for _ in range(2))
    tasks = [asyncio.create_task(busy.submit(rows(float(i)), MEAN, None)) for i in range(10)]
    await engine.wait_until_running()
    tasks += [asyncio.create_task(other.submit(rows(100.0 + i), MEAN, None)) for i in range(2)]
    await asyncio.sleep(0)
    for _ in tasks:
        engine.go_on.release()
    await asyncio.wait_for(asyncio.gather(*tasks), TIMEOUT_S)
    order = [batch[0] for batch in engine.batches]
    assert order[:5] == [0.0, 1.0, 100.0, 2.0, 101.0]  # 1.0 waited before the other model had anything
    assert sorted(order) == [*map(float, range(10)), 100.0, 101.0]
    await busy.stop()
    await other.stop()


async def test_only_one_model_runs_at_a_time_on_one_lane() -> None:
    metrics = Metrics().model("tiny", "1", ["a"], 1)
    engine = Engine()
    batchers = [Batcher(engine, LANE, 1, 16, metrics) for _ in range(3)]
    tasks = [asyncio.create_task(batcher.submit(rows(float(i)), MEAN, None)) for i, batcher in enumerate(batchers)]
    for i in range(3):
        await engine.wait_until_running()
        await asyncio.sleep(0)
        assert len(engine.batches) == i + 1
        engine.go_on.release()
    np.testing.assert_array_equal([(await task).probs_BC[0, 0] for task in tasks], [0.0, 1.0, 2.0])
    for batcher in batchers:
        await batcher.stop()
