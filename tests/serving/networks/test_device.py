import logging

import pytest

from serving.errors import StartupError
from serving.networks import device
from serving.networks.engines.onnx_cpu import OnnxCpu

NO_GPU = "the NVIDIA driver sees no GPU"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_missing_for_cuda", lambda: NO_GPU)


@pytest.mark.usefixtures("no_gpu")
def test_auto_takes_the_cpu_without_a_gpu_and_logs_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = device.choose("auto", threads=3)
    assert isinstance(engine, OnnxCpu)
    assert engine.threads == 3
    assert f"engine=onnxruntime-cpu precision=fp32 threads=3 reason='{NO_GPU}'" in caplog.text
    engine.close()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, f"--device cuda: {NO_GPU}"),
        ({"device": "auto", "engine": "tensorrt"}, f"--engine tensorrt: {NO_GPU}"),
        ({"device": "cpu", "engine": "tensorrt"}, "--engine tensorrt, which needs a GPU"),
        ({"device": "cuda", "engine": "openvino"}, "--engine openvino, which runs on CPUs"),
        ({"device": "cpu", "engine": "onnxruntime", "precision": "bf16"}, "ONNX Runtime has fp32 alone on a CPU"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_is_missing(settings: dict[str, str], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        device.choose(**settings)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("settings", "asked"), [({"engine": "openvino"}, "--engine openvino"), ({"precision": "bf16"}, "--precision bf16")]
)
def test_openvino_that_is_not_installed_is_named_with_the_command_that_installs_it(
    settings: dict[str, str], asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartupError, match=rf"{asked}.*pip install 'thalweg\[openvino\]'"):
        device.choose("cpu", **settings)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_gpu")
def test_reduced_precision_on_a_cpu_is_openvinos() -> None:
    pytest.importorskip("openvino", reason="extra [openvino] is not installed")
    assert device.choose("cpu", precision="bf16").name == "openvino-cpu"
