"""Folders that change under a server, look by look: what is loaded, kept, refused and removed. No clock."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from grpc_health.v1.health import aio as health

from protos import open_inference_grpc_pb2 as oip
from protos import signature
from protos.validate import InvalidEnsemble, IsTrusted
from serving.errors import LoadFailed, NotReady, StartupError, UnknownModel
from serving.policy import Choice, Policy
from serving.repository.control import Control
from serving.repository.loader import Loader
from serving.repository.models import Repository, ServedModel
from serving.repository.reload import Reloader
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from tests import tiny_ensemble

MEAN = Choice(Policy.MEAN)
ROWS = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


class Bench:
    """A repository on disk with `tiny` of one version and four members, and what serves it."""

    def __init__(self, root: Path, is_trusted: IsTrusted | None = None) -> None:
        self.root = root
        self.metrics, self.checks, self.repository = Metrics(), health.HealthServicer(), Repository()
        loader = Loader(Settings((root,), device="cpu", threads=1, max_batch_rows=4), self.metrics)
        self.reloader = Reloader([root], loader, self.repository, self.checks, self.metrics, is_trusted)

    async def start(self, lenient: bool = True) -> None:
        self.reloader.read(lenient)
        await self.reloader.load_all(lenient)

    async def settle(self) -> None:
        """What has changed is seen, and seen again."""
        await self.reloader.look()
        await self.reloader.look()

    def write(self, place: str, members: int = 4, **names: str) -> None:
        tiny_ensemble.write(self.root / place, members, **names)

    def corrupt(self, place: str) -> None:
        """The last bytes of a weight set are others than the manifest says."""
        path = self.root / place / "weights/w0.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    async def members(self, version: str = "") -> int:
        """How many members `tiny` has, by its answer."""
        return await members(self.repository.find("tiny", version))

    def counted(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value("ensemble_loads_total", {"result": result})

    def states(self) -> list[tuple[str, str, str, str]]:
        return [(slot.name, slot.version, slot.state, slot.reason) for slot in self.reloader.index()]


async def members(model: ServedModel) -> int:
    answer = await model.batcher.submit(ROWS, MEAN, None)
    count = len(model.ensemble.member_ids)
    np.testing.assert_allclose(answer.probs_BC, tiny_ensemble.pooled_probs(ROWS, members=count), atol=1e-6)
    return count


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.write("tiny/1")
    yield bench
    await bench.repository.close()
    await bench.reloader.close()


async def test_a_new_version_answers_once_two_looks_agree(bench: Bench) -> None:
    await bench.start()
    bench.write("tiny/2", members=2, version="2")
    await bench.reloader.look()
    assert await bench.members() == 4
    await bench.reloader.look()
    assert await bench.members() == 2
    assert await bench.members("1") == 4
    assert bench.counted("ok") == 2


async def test_changed_contents_are_loaded_and_equal_contents_are_not(bench: Bench) -> None:
    await bench.start()
    bench.write("tiny/1", members=3)
    await bench.settle()
    assert await bench.members("1") == 3
    bench.write("tiny/1", members=3)  # other files, the same bytes
    await bench.settle()
    assert bench.counted("ok") == 2


async def test_a_bad_version_is_refused_once_and_the_old_one_stays(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.start()
    bench.write("tiny/1", members=2)
    bench.corrupt("tiny/1")
    for _ in range(3):
        await bench.settle()
    assert await bench.members() == 4
    assert bench.counted("refused") == 1
    (record,) = [record for record in caplog.records if "refused" in record.message]
    assert "wrong-hash: 'weights/w0.safetensors'" in record.message
    assert "kept_version=1" in record.message
    ((_, _, state, reason),) = bench.states()
    assert state == "READY"
    assert "wrong-hash" in reason

    bench.write("tiny/1", members=3)
    await bench.settle()
    assert await bench.members() == 3
    assert bench.states() == [("tiny", "1", "READY", "")]


async def test_a_folder_is_read_when_its_last_file_has_come(bench: Bench) -> None:
    await bench.start()
    bench.write("elsewhere", members=2, version="2")
    last = bench.root / "elsewhere/weights/w1.safetensors"
    shutil.copytree(bench.root / "elsewhere", bench.root / "tiny/2", ignore=shutil.ignore_patterns(last.name))
    await bench.settle()
    assert bench.repository.versions("tiny") == ["1"]
    shutil.copy(last, bench.root / "tiny/2/weights")
    await bench.settle()
    assert bench.repository.versions("tiny") == ["1", "2"]


async def test_a_removed_version_leaves_after_its_last_request(bench: Bench) -> None:
    bench.write("tiny/2", members=2, version="2")
    await bench.start()
    model = bench.repository.find("tiny")
    with model.held():
        shutil.rmtree(bench.root / "tiny/2")
        await bench.reloader.look()
        assert bench.repository.find("tiny") is model  # a rename may be going on
        await bench.reloader.look()
        assert await bench.members() == 4
        assert await members(model) == 2
        closing = list(bench.reloader._closing)
        assert not closing[0].done()
    await asyncio.wait_for(asyncio.gather(*closing), 30)
    with pytest.raises(UnknownModel, match="unknown version '2' of 'tiny'; this server has '1'"):
        bench.repository.find("tiny", "2")


async def test_requests_finish_on_the_version_that_they_started_with(bench: Bench) -> None:
    await bench.start()
    old = bench.repository.find("tiny")
    with old.held():
        bench.write("tiny/1", members=2)
        await bench.settle()
        assert await bench.members() == 2
        assert await members(old) == 4


async def test_a_repository_that_cannot_be_read_or_is_empty_changes_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.start()
    bench.root.rename(bench.root.with_name("aside"))
    await bench.settle()
    bench.root.mkdir()
    await bench.settle()
    assert await bench.members() == 4
    assert len([record for record in caplog.records if "nothing changes" in record.message]) == 2
    bench.root.rmdir()
    bench.root.with_name("aside").rename(bench.root)
    await bench.settle()
    assert await bench.members() == 4
    assert bench.counted("ok") == 1


async def test_a_directory_that_becomes_another_version_replaces_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "served")
    bench.write("")
    await bench.start()
    bench.write("", members=2, version="0")
    await bench.settle()
    assert bench.repository.versions("tiny") == ["0"]
    assert await bench.members() == 2
    await bench.repository.close()
    await bench.reloader.close()


async def test_a_link_that_is_turned_is_followed(tmp_path: Path) -> None:
    """As git-sync and Kubernetes' volumes publish."""
    for version, members in (("1", 4), ("2", 2)):
        tiny_ensemble.write(tmp_path / f"release-{version}", members, version=version)
    bench = Bench(tmp_path / "current")
    bench.root.symlink_to(tmp_path / "release-1")
    await bench.start()
    assert await bench.members() == 4
    (tmp_path / "next").symlink_to(tmp_path / "release-2")
    (tmp_path / "next").replace(bench.root)
    await bench.settle()
    assert bench.repository.versions("tiny") == ["2"]
    assert await bench.members() == 2
    await bench.repository.close()
    await bench.reloader.close()


async def test_two_folders_of_one_version_the_second_is_refused(bench: Bench) -> None:
    await bench.start()
    other = bench.root / "other"
    bench.write("other/1", members=2, name="other")
    await bench.settle()
    assert bench.repository.versions("other") == ["1"]
    shutil.rmtree(other)
    bench.write("other", members=2)
    await bench.settle()
    assert any("called 'other'" in reason for _, _, _, reason in bench.states())


async def test_at_start_a_bad_one_stops_the_server_unless_it_watches(bench: Bench) -> None:
    bench.write("tiny/2", members=2, version="2")
    bench.corrupt("tiny/2")
    with pytest.raises(ValueError, match="wrong-hash"):
        bench.reloader.read(lenient=False)
    await bench.start()
    assert bench.repository.versions("tiny") == ["1"]
    assert bench.counted("refused") == 1
    bench.write("tiny/2", members=2, version="2")
    await bench.settle()
    assert await bench.members() == 2


async def test_with_nothing_to_serve_it_does_not_start(tmp_path: Path) -> None:
    tiny_ensemble.write_next_token(tmp_path / "bigram")
    for lenient in (False, True):
        bench = Bench(tmp_path)
        bench.reloader.read(lenient)
        with pytest.raises(StartupError, match="predicts the next token"):
            await bench.reloader.load_all(lenient)


async def test_control_unloads_and_loads_by_name(bench: Bench) -> None:
    await bench.start()
    await bench.reloader.unload("tiny")
    with pytest.raises(NotReady, match="'tiny' is unloaded"):
        bench.repository.find("tiny")
    assert bench.states() == [("tiny", "1", "UNAVAILABLE", "unloaded")]
    bench.write("tiny/2", members=2, version="2")
    await bench.settle()
    with pytest.raises(NotReady):  # not by watching
        bench.repository.find("tiny")
    with pytest.raises(UnknownModel, match="failed to unload 'tiny'"):
        await bench.reloader.unload("tiny")
    await bench.reloader.load("tiny")
    assert bench.repository.versions("tiny") == ["1", "2"]
    assert await bench.members() == 2


async def test_what_was_unloaded_and_then_removed_is_unknown(bench: Bench) -> None:
    bench.write("other", name="other")
    await bench.start()
    await bench.reloader.unload("other")
    shutil.rmtree(bench.root / "other")
    await bench.settle()
    with pytest.raises(UnknownModel, match="unknown model 'other'; this server has 'tiny'"):
        bench.repository.find("other")


async def test_a_client_that_goes_away_leaves_no_load_half_done(bench: Bench) -> None:
    await bench.start()
    control = Control(bench.reloader)
    bench.write("tiny/2", members=2, version="2")
    for _ in range(2):
        asked = asyncio.create_task(control.load(oip.RepositoryModelLoadRequest(model_name="tiny")))
        await asyncio.sleep(0)
        asked.cancel()
    await asyncio.gather(*control._changes)
    assert await bench.members() == 2
    assert bench.counted("ok") == 2


@pytest.mark.parametrize("name", ["other", "../tiny", "/tmp/tiny", "tiny/1", ".", ""])
async def test_control_loads_nothing_but_names_that_the_folders_hold(bench: Bench, name: str) -> None:
    tiny_ensemble.write(bench.root.parent / "outside", name="other")
    await bench.start()
    with pytest.raises(UnknownModel, match="failed to load"):
        await bench.reloader.load(name)
    assert bench.states() == [("tiny", "1", "READY", "")]


async def test_control_says_why_a_load_failed_and_tries_again_when_asked(bench: Bench) -> None:
    await bench.start()
    bench.write("tiny/1", members=2)
    bench.corrupt("tiny/1")
    for count in (1, 2):
        with pytest.raises(LoadFailed, match="failed to load 'tiny': wrong-hash"):
            await bench.reloader.load("tiny")
        assert bench.counted("refused") == count
    assert await bench.members() == 4


async def test_a_server_that_requires_a_signature_refuses_others_at_start_and_on_reload(tmp_path: Path) -> None:
    private, public = signature.generate()
    bench = Bench(tmp_path, signature.trust(public))
    bench.write("tiny/1")
    with pytest.raises(InvalidEnsemble, match="unsigned"):
        bench.reloader.read(lenient=True)
    signature.sign_directory(tmp_path / "tiny/1", private)
    await bench.start()
    bench.write("tiny/1", members=2)
    await bench.settle()
    assert await bench.members() == 4
    assert "unsigned" in bench.states()[0][3]
    signature.sign_directory(tmp_path / "tiny/1", private)
    await bench.settle()
    assert await bench.members() == 2
    await bench.repository.close()
    await bench.reloader.close()
