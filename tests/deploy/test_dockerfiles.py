"""The Dockerfiles pass hadolint, and manifests rely on nothing that the images do not set."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy import semantics
from tests.deploy.render import DEPLOY

HADOLINT = Path(sys.executable).with_name("hadolint")
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /app && pip install thalweg\n")
    done = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert {"DL3003", "DL3006", "DL3013"} <= set(re.findall(r"DL\d+", done.stdout))


def test_the_server_image_sets_what_manifests_count_on() -> None:
    text = (DEPLOY / "Dockerfile.serving").read_text()
    assert dict(re.findall(r"\b(THALWEG_[A-Z_]+)=(\S+)", text)) == semantics.IMAGE
    assert 'ENTRYPOINT ["thalweg-serve"]' in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_images_run_as_the_user_that_manifests_name(path: Path) -> None:
    assert re.findall(r"^USER (\S+)$", path.read_text(), re.MULTILINE) == ["10001:10001"]
