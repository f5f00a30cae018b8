"""The set-ups of our own server that are compared: settings of `thalweg-serve`, and how far an answer may be off."""

from collections.abc import Sequence
from typing import NamedTuple


class Setup(NamedTuple):
    arguments: Sequence[str]
    tolerance: float  # of a probability; of fp32 that of every peer


FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 0.01

SETUPS = {
    "thalweg": Setup((), FP32_TOLERANCE),
    "thalweg, OpenVINO": Setup(("--engine", "openvino"), FP32_TOLERANCE),
    "thalweg, OpenVINO bf16": Setup(("--engine", "openvino", "--precision", "bf16"), BF16_TOLERANCE),
}
