"""What may import what: the two sides share the contract and nothing else."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {"trainer": {"serving"}, "serving": {"trainer", "torch"}, "protos": {"trainer", "serving", "torch"}}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_module_imports_across_the_boundary(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: relative import"
                names = [node.module]
            for name in names:
                assert name.partition(".")[0] not in FORBIDDEN[package], f"{path} imports {name}"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_server_never_loads_torch() -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "serving").rglob("*.py"))]
    modules = [".".join(path.parts) for path in paths if path.name != "__init__"]
    if importlib.util.find_spec("openvino") is None:
        modules.remove("serving.networks.engines.openvino_cpu")
    everything = "; ".join(f"import {module}" for module in modules)
    loaded = run(f"import sys; {everything}; print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("ours_first", [True, False])
def test_our_protocol_and_tritonclients_live_in_one_process(ours_first: bool) -> None:
    imports = ["import protos.open_inference_grpc_pb2 as ours", "import tritonclient.grpc as theirs"]
    code = "\n".join(imports if ours_first else imports[::-1])
    code += "\nmessage = theirs.service_pb2.ModelInferRequest(model_name='x', id='7')"
    code += "\nprint(ours.ModelInferRequest.FromString(message.SerializeToString()).id)"
    assert run(code).strip() == "7"


@pytest.mark.parametrize("package", ["serving", "trainer"])
def test_onnx_runtime_is_told_not_to_report_to_its_maker(package: str) -> None:
    assert run(f"import os, {package}; print(os.environ['ORT_DISABLE_TELEMETRY'])").strip() == "1"
