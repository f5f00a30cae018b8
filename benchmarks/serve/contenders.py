"""Everybody who is compared: how the server is started, and how it is asked."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve import environments, ours
from benchmarks.serve.peers import Body, oip

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = Path(__file__).parent / "peers"
THREADS = 2


class Kind(StrEnum):
    OURS = "ours"
    TUNED = "tuned"
    NATURAL = "natural"


@dataclass(frozen=True)
class Contender:
    name: str
    kind: Kind
    command: Callable[[Path, int], list[str]]  # of the folder that `ensemble.py` wrote, and the port
    protocol: str  # "oip-grpc" or "http"
    request: Callable[[NDArray[np.uint8]], Body]
    probabilities: Callable[[bytes], NDArray[np.float32]]
    tolerance: float  # how far a probability may be off
    environment: Path | None = None  # None: ours
    packages: Sequence[str] = ()

    @property
    def file_name(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "-").lower()

    def versions(self) -> dict[str, str]:
        python = str(environments.python_of(self.environment)) if self.environment else sys.executable
        return environments.versions(python, self.packages or ("thalweg",))


def find(folder: Path) -> list[Contender]:
    """Ours first, then each peer's set-ups. folder: of the peers' environments, which need not exist yet."""
    peers = [importlib.import_module(f"benchmarks.serve.peers.{path.stem}") for path in sorted(PEERS.glob("[!_]*.py"))]
    return [
        *(_ours(name) for name in ours.SETUPS),
        *(_peer(module, setup, folder) for module in peers for setup in getattr(module, "SETUPS", ())),
    ]


def _ours(name: str) -> Contender:
    setup = ours.SETUPS[name]

    def command(models: Path, port: int) -> list[str]:
        ports = ["--grpc-port", str(port), "--metrics-port", "0"]
        return [sys.executable, "-m", "serving", str(models / "thalweg"), *ports, *setup.arguments]

    return Contender(name, Kind.OURS, command, "oip-grpc", oip.request, oip.probabilities, setup.tolerance)


def _peer(module: ModuleType, setup: str, folder: Path) -> Contender:
    name = module.__name__.rpartition(".")[2]
    python = environments.python_of(folder / name)

    def command(models: Path, port: int) -> list[str]:
        where = ["--models", str(models), "--port", str(port), "--threads", str(THREADS)]
        # As a module: a script's folder is searched first, and there `litserve` is the peer's own file.
        return [str(python), "-m", module.__name__, "--setup", setup, *where]

    return Contender(
        f"{name}, {setup}",
        Kind(setup),
        command,
        module.PROTOCOL[setup] if isinstance(module.PROTOCOL, dict) else module.PROTOCOL,
        partial(module.request, setup=setup),
        partial(module.probabilities, setup=setup),
        ours.FP32_TOLERANCE,
        folder / name,
        module.PACKAGES,
    )
