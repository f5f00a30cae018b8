"""An environment of its own for each peer, with the version of ONNX Runtime that we have: servers are compared."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SHARED = ("grpcio", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "protobuf", "uvicorn", "uvloop")


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def is_ready(folder: Path, packages: Sequence[str]) -> bool:
    stamp = folder / "packages.txt"
    return stamp.exists() and stamp.read_text() == _stamp(packages)


def prepare(folder: Path, packages: Sequence[str]) -> None:
    """Makes what is not ready. Raises RuntimeError with pip's last words."""
    if is_ready(folder, packages):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(f"onnxruntime=={_onnxruntime()}\n")
    pip = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not install {', '.join(packages)}: {done.stderr.strip()[-2000:]}")
    (folder / "packages.txt").write_text(_stamp(packages))


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Of what was asked for, and of what it brought that shares the work."""
    code = "import importlib.metadata, json; "
    code += "print(json.dumps({each.metadata['Name']: each.version for each in importlib.metadata.distributions()}))"
    installed = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    names = {*SHARED, *map(_name, packages)}
    return {name: installed[name] for name in sorted(installed) if _name(name) in names}


def _name(requirement: str) -> str:
    for end in "[<>=!~; ":
        requirement = requirement.partition(end)[0]
    return requirement.lower().replace("_", "-")


def _stamp(packages: Sequence[str]) -> str:
    return "\n".join([*packages, f"onnxruntime=={_onnxruntime()}", ""])


def _onnxruntime() -> str:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise RuntimeError("ONNX Runtime is not installed; expected thalweg[serve]")
