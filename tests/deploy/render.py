"""What `kubectl apply -k` would send: rendered by the kubectl that the extra [dev] brings."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBECTL = Path(sys.executable).with_name("kubectl")
FOLDERS = sorted(
    path.parent.relative_to(DEPLOY).as_posix()
    for place in ("base", "overlays/*", "training/*")
    for path in DEPLOY.glob(f"{place}/kustomization.yaml")
    if path.parent.relative_to(DEPLOY).as_posix() != "training/base"
)

Document = dict[str, Any]


@functools.cache
def rendered_text(folder: str) -> str:
    """folder: of deploy/, such as overlays/cpu. Raises CalledProcessError."""
    command = [KUBECTL, "kustomize", DEPLOY / folder]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def rendered(folder: str) -> list[Document]:
    """A new copy each time: tests break it."""
    copy: list[Document] = json.loads(_rendered_json(folder))
    return copy


@functools.cache
def _rendered_json(folder: str) -> str:
    return json.dumps(list(yaml.load_all(rendered_text(folder), yaml.CSafeLoader)))
