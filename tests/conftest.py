"""What many tests share: one small run of the real pipeline, and one server on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_ensemble
from tests.server_process import ServerProcess

SMALL = [
    "endpoint.epochs=6",
    "fge.start_epochs=[4]",
    "fge.epochs=5",
    "fge.cycle_epochs=2",
    "fge.trace_every=6",
    "curve.epochs=10",
    "curve.members=5",
    "curve.grid=9",
]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Recipe digits with few epochs: three FGE snapshots, five curve members."""
    from rich.console import Console

    from trainer import pipeline
    from trainer.config import override
    from trainer.progress import Progress
    from trainer.recipes import RECIPES

    out = tmp_path_factory.mktemp("run")
    config = override(RECIPES["digits"](0), SMALL)
    return pipeline.run(config, out, Progress(Console(quiet=True)))


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "tiny"
    tiny_ensemble.write(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_server(tiny_directory: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_directory, "--max-batch-rows", "256", "--max-message-bytes", "65536") as server:
        yield server
