"""checkov finds nothing in what is applied, beside what deploy/checkov.yaml skips with a reason."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.render import DEPLOY, FOLDERS, rendered_text

CONFIG = DEPLOY / "checkov.yaml"
# In an environment of its own: it wants older versions of what others need newer. `make deploy-test` makes it.
CHECKOV = shutil.which("checkov", path=Path(sys.prefix, "checkov", "bin")) or shutil.which("checkov")


def test_every_exception_has_a_reason() -> None:
    lines = [line for line in CONFIG.read_text().splitlines() if line.strip().startswith("- ")]
    assert [line.split("#")[0].strip(" -") for line in lines] == yaml.safe_load(CONFIG.read_text())["skip-check"]
    assert all(len(line.partition("#")[2]) > 20 for line in lines)


def findings(folder: Path) -> tuple[set[str], int]:
    """What failed, and how many checks passed."""
    assert CHECKOV is not None
    command = [CHECKOV, "--directory", folder, "--config-file", CONFIG, "--output=json", "--quiet", "--skip-download"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    failed = found["results"]["failed_checks"]
    return {f"{each['check_id']} {each['resource']} in {each['file_path']}" for each in failed}, found["summary"][
        "passed"
    ]


@pytest.mark.slow
@pytest.mark.skipif(CHECKOV is None, reason="needs checkov: make deploy-test")
def test_checkov_finds_nothing_but_the_exceptions(tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / f"{folder.replace('/', '-')}.yaml").write_text(rendered_text(folder))
    failed, passed = findings(tmp_path)
    assert failed == set()
    assert passed > 50 * len(FOLDERS)


@pytest.mark.slow
@pytest.mark.skipif(CHECKOV is None, reason="needs checkov: make deploy-test")
def test_checkov_would_find_something(tmp_path: Path) -> None:
    text = rendered_text("overlays/cpu").replace("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true")
    (tmp_path / "broken.yaml").write_text(text)
    failed, _ = findings(tmp_path)
    assert {line.split()[0] for line in failed} == {"CKV_K8S_20"}
