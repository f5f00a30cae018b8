"""The training Job's container: killed, started again as a Job's next pod is, it goes on, and its ensemble is whole.

The trainer's image takes 6.8 GB, 24 more and five minutes to build: without it our code and this machine's packages
stand in for it, on the same base, with the Job's arguments and rights. With it (`BUILD`) it is tried as well.
"""

import os
import re
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from protos.validate import validate
from tests.deploy import containers
from tests.deploy.containers import ROOT, Container, needs_containers
from tests.deploy.render import rendered

pytestmark = [
    needs_containers,
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="packages are mounted for the base's Python, 3.11"),
    pytest.mark.slow,
]

FEW_EPOCHS = (
    "endpoint.epochs=12", "fge.start_epochs=[8]", "curve.epochs=200", "curve.members=5", "curve.grid=9",
    "checkpoint_seconds=0",
)  # fmt: skip
IMAGE = "localhost/thalweg-trainer"
BUILD = """python -c "from tests.deploy import containers as c; c.build('thalweg-trainer', 'Dockerfile.trainer')\""""


def pod(folder: Path, own_image: bool) -> Container:
    (job,) = [each for each in rendered("training/job") if each["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    rights = [each for each in containers.RESTRICTED if not each.startswith("--memory")]
    options = (*rights, "--memory=2g", f"--volume={folder}:/mnt/models")
    settings = [f"--set={each}" for each in FEW_EPOCHS]
    if own_image:
        return Container(IMAGE, *container["args"], *settings, options=options)
    packages = sysconfig.get_path("purelib")
    mounts = [f"--volume={path}:{place}:ro" for path, place in (
        (packages, "/packages"), (ROOT / "trainer", "/app/trainer"), (ROOT / "protos", "/app/protos"),
    )]  # fmt: skip
    environment = ["--env=PYTHONPATH=/app:/packages", "--env=HOME=/tmp", "--env=USER=thalweg"]
    stand_in = (*options, *mounts, *environment, "--entrypoint=python3")
    return Container(containers.base(), "-m", "trainer", *container["args"], *settings, options=stand_in)


def epochs(container: Container) -> list[tuple[str, int]]:
    return [(stage, int(epoch)) for stage, epoch in re.findall(r"stage='([^']+)' epoch=(\d+)", container.logs())]


@pytest.mark.parametrize("own_image", [False, True])
@pytest.mark.parametrize(("signal", "code"), [("KILL", 137), ("TERM", 143)])
def test_a_run_that_is_ended_goes_on_in_the_next_pod(tmp_path: Path, signal: str, code: int, own_image: bool) -> None:
    if own_image and IMAGE not in containers.images():
        pytest.skip(f"{IMAGE} is not built: {BUILD}")
    os.chown(tmp_path, 10001, 10001)  # as a claim with fsGroup
    with pod(tmp_path, own_image) as first:
        deadline = time.monotonic() + 200
        while ("curve", 40) not in epochs(first):
            assert first.inspect()["State"]["Running"], first.logs()
            assert time.monotonic() < deadline, first.logs()
        first.signal(signal)
        assert first.wait() == code
    assert not (tmp_path / "digits/curve").exists()
    with pod(tmp_path, own_image) as second:
        assert second.wait() == 0, second.logs()
        stage, epoch = epochs(second)[0]
        assert (stage, epoch > 40) == ("curve", True)  # neither endpoints nor the curve's start are trained again
    assert len(validate(tmp_path / "digits/curve").manifest.members) == 5
