"""Images built with buildah on a base made by mmdebstrap, and containers run by podman as a cluster would run them.

No registry of images is needed; packages come by pip, as this machine's pip is configured. Images stay between runs,
and so do the layers that nothing has changed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = "localhost/thalweg-base"
PROGRAMS = ("buildah", "podman", "runc", "mmdebstrap", "iptables")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
if os.geteuid() != 0:
    MISSING.append("root")
needs_containers = pytest.mark.skipif(
    bool(MISSING), reason=f"missing: {', '.join(MISSING)} (Debian packages {' '.join(PROGRAMS)} netavark; root)"
)

# As the Deployment's securityContext and limits.
RESTRICTED = (
    "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges",
    "--user=10001:10001", "--memory=512m", "--pids-limit=200",
)  # fmt: skip
CONFIGURATION = Path(__file__).with_name("containers.conf")
PODMAN = ("env", f"CONTAINERS_CONF={CONFIGURATION}", "podman")


def podman(*arguments: object, check: bool = True) -> str:
    """What it writes to stdout, and with check=False to stderr as well."""
    done = subprocess.run(
        [*PODMAN, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, f"podman {arguments}: {done.stderr}"
        return done.stdout
    return done.stdout + done.stderr


def build(name: str, dockerfile: str, target: str | None = None, **arguments: str) -> str:
    """Returns the image's name, localhost/NAME."""
    arguments = {"BASE": base(), **arguments}
    options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    options += [f"--volume={path}:{path}:ro" for path in _of_pip()]
    if target is not None:
        options.append(f"--target={target}")
    # Another isolation needs what a container's root may not do; only images in `docker` format have a health check.
    command = ["buildah", "bud", "--isolation=chroot", "--network=host", "--pull=never", "--layers", "--format=docker"]
    done = subprocess.run(
        [*command, *options, f"--file=deploy/{dockerfile}", f"--tag={name}", "."],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return f"localhost/{name}"


def base() -> str:
    """Debian with Python and its venv module: what the Dockerfiles ask of a base."""
    return debian(BASE, "bookworm", "python3", "python3-venv", "ca-certificates")


def images() -> list[str]:
    """Names of those that are there."""
    return podman("images", "--format={{.Repository}}").split()


def debian(name: str, suite: str, *packages: str) -> str:
    """The image's name, made if there is none."""
    if name not in images():
        with tempfile.TemporaryDirectory() as folder:
            tar = Path(folder) / "base.tar"
            command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", suite, str(tar)]
            subprocess.run(command, check=True, capture_output=True)
            podman("import", tar, name)
    return name


def _of_pip() -> list[Path]:
    """This machine's pip configuration, and every file and folder that it names: authorities, and indexes, whose files
    lie beside them.
    """
    pip = [sys.executable, "-m", "pip", "config"]
    texts = [
        subprocess.run([*pip, word], capture_output=True, text=True, check=True).stdout for word in ("debug", "list")
    ]
    files = [line.split(",")[0].strip() for line in texts[0].splitlines() if line.endswith("exists: True")]
    words = texts[1].replace("'", " ").replace("=", " ").split()
    indexes = [Path(word.removeprefix("file://")).parent for word in words if word.startswith("file://")]
    paths = {path for path in (*map(Path, files + words), *indexes) if path.is_absolute() and path.exists()}
    # The shortest name of each: a file in a folder that is mounted is there already.
    return sorted(path for path in paths if not any(parent in paths for parent in path.parents))


class Container:
    """`podman run`, from its start to its removal."""

    def __init__(self, image: str, *command: object, options: Sequence[object] = ()) -> None:
        self.id = podman("run", "--detach", *options, image, *command).strip()

    def inspect(self) -> dict[str, Any]:
        return json.loads(podman("inspect", self.id))[0]  # type: ignore[no-any-return]

    @property
    def address(self) -> str:
        (network,) = self.inspect()["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    @property
    def pid(self) -> int:
        """On this machine."""
        return int(self.inspect()["State"]["Pid"])

    def logs(self) -> str:
        return podman("logs", self.id, check=False)

    def wait_until_ready(self, timeout_s: float = 120.0) -> Self:
        """As a readiness probe: until every model is loaded and warm."""
        deadline = time.monotonic() + timeout_s
        while podman("exec", self.id, "thalweg-health", check=False):
            assert self.inspect()["State"]["Running"], self.logs()
            assert time.monotonic() < deadline, self.logs()
        return self

    def signal(self, name: str) -> None:
        podman("kill", f"--signal={name}", self.id)

    def wait(self) -> int:
        """Its exit code, once it ends by itself."""
        return int(podman("wait", self.id))

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.signal("TERM")
        return self.wait()

    def remove(self) -> None:
        podman("rm", "--force", "--time=0", self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
