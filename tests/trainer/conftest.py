"""What several of the trainer's tests share."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from trainer import atomic_file
from trainer.pipeline import Outcome


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are no faster with two threads, and far slower where the processors are taken."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(small_run: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: other tests compare the run's own folder."""
    folder = tmp_path_factory.mktemp("copied") / "run"
    shutil.copytree(small_run.report.parent, folder)
    return folder


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Runs what writes files, and ends it as by a signal when it would write one more than so many."""
    real = atomic_file.write_bytes

    def kill(files: int, work: Callable[[], object]) -> None:
        calls = 0

        def write_bytes(path: Path, data: bytes) -> None:
            nonlocal calls
            calls += 1
            if calls > files:
                raise KeyboardInterrupt
            real(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(atomic_file, "write_bytes", write_bytes)
            with pytest.raises(KeyboardInterrupt):
                work()

    return kill
