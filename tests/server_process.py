"""A real server in its own process, for the demo, tests and benchmarks."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent


class ServerProcess:
    """`thalweg-serve DIRECTORY` on free ports, from its ready line to its end."""

    def __init__(
        self, directory: Path, *arguments: str, environment: dict[str, str] | None = None, root: Path = ROOT
    ) -> None:
        """root: the checkout whose server it is."""
        command = [sys.executable, "-m", "serving", str(directory), "--grpc-port", "0", "--metrics-port", "0"]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)} | (environment or {}),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            _, errors = self.process.communicate(timeout=30)
            raise RuntimeError(f"the server did not start: {errors}")
        fields = dict(field.split("=", 1) for field in line.split()[1:])
        self.grpc, self.metrics, self.health = fields["grpc"], fields["metrics"], fields.get("health")
        self.http = fields.get("http")

    def stop(self) -> tuple[int, str]:
        """Ends the process by SIGTERM; returns its exit code and what it logged."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
