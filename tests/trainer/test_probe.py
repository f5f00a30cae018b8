"""Rows that a directory holds so that whoever serves it can compare."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from protos.ensemble_pb2 import Endpoint
from protos.validate import validate
from tests.trainer.networks import random_split
from trainer import data, probe
from trainer.config import DataConfig
from trainer.data import Split, Splits
from trainer.member import Ensemble, Member
from trainer.pipeline import Outcome


def test_every_directory_holds_rows_of_calibration_with_what_torch_answered(small_run: Outcome) -> None:
    calibration = data.load(DataConfig()).calibration
    chosen = torch.arange(16) * 300 // 16
    for method, directory in small_run.ensembles.items():
        found = validate(directory).probe
        assert found is not None
        np.testing.assert_array_equal(found.inputs, calibration.inputs[chosen].numpy())
        answered = safetensors.torch.load_file(directory.parent / "logits" / f"{method}.safetensors")["calibration"]
        np.testing.assert_array_equal(found.logits_MNC, answered[:, chosen].numpy())


def ensemble(logits_MNC: Tensor) -> Ensemble:
    members = [Member(f"m{i}", Endpoint(), {}, {}, {"calibration": z}, 1.0) for i, z in enumerate(logits_MNC)]
    return Ensemble("any", {}, members, 1.0)


def test_no_rows_if_none_are_wanted_and_no_more_than_there_are() -> None:
    splits = Splits("random", *(random_split(rows) for rows in (12, 10, 8)), class_labels=["a", "b", "c"])
    answered = ensemble(torch.randn(2, 10, 3))
    assert probe.of(answered, splits, 0) is None
    every = probe.of(answered, splits, 16)
    assert every is not None
    assert every.logits_MNC.shape == (2, 10, 3)


@pytest.mark.parametrize(("classes", "rows"), [(100, 16), (2**16, 3), (2**20, 1)])
def test_fewer_rows_where_their_logits_are_large(classes: int, rows: int) -> None:
    tokens = torch.arange(20 * 5).view(20, 5)
    split = Split(tokens, tokens)
    splits = Splits("words", split, split, split, class_labels=[])
    logits_MNC = torch.zeros(1, 1, 1).expand(1, 20 * 5, classes)
    found = probe.of(ensemble(logits_MNC), splits, 16)
    assert found is not None
    assert found.logits_MNC.shape == (1, rows, 5, classes)
    np.testing.assert_array_equal(found.inputs[0], tokens[0])


def test_the_manifest_lists_it(small_run: Outcome) -> None:
    directory: Path = small_run.ensembles["fge"]
    assert validate(directory).manifest.probe.path == "probe.safetensors"
