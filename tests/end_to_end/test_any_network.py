"""Networks and data that are not ours go the whole road, unmodified: train, FGE, curve, export, serve."""

from pathlib import Path

import numpy as np
import pytest

from protos.validate import validate
from serving.client import Client
from tests.server_process import ServerProcess
from trainer.__main__ import main

QUICK = [
    "data.train_rows=60",
    "data.calibration_rows=40",
    "sgd.batch_size=30",
    "endpoint.epochs=2",
    "endpoint.learning_rate=0.02",
    "fge.start_epochs=[1,2]",
    "fge.epochs=1",
    "fge.cycle_epochs=1",
    "fge.alpha_1=0.05",
    "curve.epochs=1",
    "curve.learning_rate=0.02",
    "curve.members=3",
    "curve.grid=3",
]

TRANSFORMER = """
import numpy as np
import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self, classes, width=16):
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        layer = nn.TransformerEncoderLayer(width, 2, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.output = nn.Linear(width, classes)

    def forward(self, tokens):
        return self.output(self.encoder(self.embedding(tokens)).mean(1))


class Tied(nn.Module):
    '''Predicts the token that comes most often, with the embedding as its output layer.'''

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.rnn = nn.LSTM(16, 16, batch_first=True)
        self.output = nn.Linear(16, 20, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        hidden, _ = self.rnn(self.embedding(tokens))
        return self.output(hidden.mean(1))


def rows():
    tokens = np.random.default_rng(0).integers(0, 20, (200, 9))
    tokens[:, :5] = np.arange(200)[:, None] % 20
    return {"train_inputs": tokens, "train_targets": tokens[:, 0]}
"""


def run(out: Path, *arguments: str) -> None:
    sets = [part for assignment in QUICK for part in ("--set", assignment)]
    assert main(["run", "digits", "--out", str(out), *sets, *arguments]) == 0


def check_served(out: Path) -> None:
    """Every row that the trainer measured on is answered, and as well as it says."""
    with np.load(out / "test.npz") as file:
        inputs, targets = file["inputs"], file["targets"]
    for name in ("fge", "curve"):
        described = validate(out / name).manifest
        with ServerProcess(out / name) as server, Client(server.grpc, described.name) as client:
            answer = client.predict(inputs)
        (stated,) = [m for m in described.metrics if (m.predictor, m.split) == ("ensemble", "test")]
        nll = -np.log(answer.probs[np.arange(len(targets)), targets]).mean()
        assert stated.nll == pytest.approx(nll, abs=2e-4)
        assert answer.members_run == {"fge": 2, "curve": 3}[name]


def check_ends(out: Path) -> None:
    """φ(0) and φ(1) are the endpoints, exactly."""
    stored = validate(out / "curve")
    for index, weight_set in ((0, "endpoint-0"), (-1, "endpoint-1")):
        tensors = stored.tensors(stored.manifest.members[index])
        for name, tensor in stored.weight_sets[weight_set].items():
            np.testing.assert_array_equal(tensors[name], tensor)


def test_a_resnet_18_of_torchvision_on_a_users_images(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def rows():\n"
        "    draw = np.random.default_rng(0)\n"
        "    y = np.arange(140) % 3\n"
        "    x = draw.integers(0, 200, (140, 3, 32, 32), dtype=np.uint8)\n"
        "    x[np.arange(140), y] += 55\n"
        "    return {'train_inputs': x, 'train_targets': y, 'class_labels': ['red', 'green', 'blue']}\n"
    )
    run(
        tmp_path / "out", "--model", "torchvision:resnet18", "--data", f"{tmp_path}/mine.py:rows",
        "--set", "data.augment=flip-crop", "--set", "name=colours",
    )  # fmt: skip
    stored = validate(tmp_path / "out/curve")
    assert list(stored.manifest.class_labels) == ["red", "green", "blue"]
    assert "layer4.1.bn2.running_var" in stored.manifest.statistic_names
    check_served(tmp_path / "out")
    check_ends(tmp_path / "out")


@pytest.mark.parametrize("network", ["Reader", "Tied"])
def test_a_transformer_and_a_tied_lstm_from_a_file_on_tokens(tmp_path: Path, network: str) -> None:
    (tmp_path / "mine.py").write_text(TRANSFORMER)
    file = f"{tmp_path}/mine.py"
    run(tmp_path / "out", "--model", f"{file}:{network}", "--data", f"{file}:rows", "--set", "name=tokens")
    manifest = validate(tmp_path / "out/fge").manifest
    assert (manifest.input.datatype, list(manifest.input.shape)) == ("INT64", [9])
    assert len(manifest.statistics) == 0
    check_served(tmp_path / "out")
    check_ends(tmp_path / "out")
