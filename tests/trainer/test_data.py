import dataclasses

import pytest
import torch

from trainer import data
from trainer.config import DataConfig
from trainer.errors import InvalidConfig


def test_splits_share_no_row_and_cover_the_data_set() -> None:
    splits = data.load(DataConfig())
    assert {name: len(split) for name, split in splits.by_name.items()} == {
        "train": 300, "calibration": 300, "test": 1197,
    }  # fmt: skip
    everything = torch.cat([split.inputs for split in splits.by_name.values()]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 1797
    assert splits.train.inputs.dtype == torch.uint8
    assert splits.train.inputs.shape[1:] == (1, 8, 8)


def test_splits_are_stratified_and_fixed_by_the_split_seed() -> None:
    first, again = data.load(DataConfig()), data.load(DataConfig())
    other = data.load(dataclasses.replace(DataConfig(), split_seed=1))
    assert first.sha256() == again.sha256() != other.sha256()
    counts = torch.bincount(first.train.targets)
    assert counts.min() >= 28
    assert counts.max() <= 32


def test_an_epoch_visits_every_row_once() -> None:
    split = data.load(DataConfig()).train
    torch.manual_seed(3)
    batches = list(split.batches(64))
    assert [len(targets) for _, targets in batches] == [64, 64, 64, 64, 44]
    assert len(batches) == split.batch_count(64)
    seen = torch.cat([inputs for inputs, _ in batches]).flatten(1)
    assert torch.equal(torch.unique(seen, dim=0), torch.unique(split.inputs.flatten(1), dim=0))


@pytest.mark.parametrize("size", [1, 299])
def test_a_batch_of_one_row_is_refused(size: int) -> None:
    with pytest.raises(InvalidConfig, match="leaves a batch of one"):
        data.load(DataConfig()).train.batch_count(size)


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="digits has 1797 rows"):
        data.load(DataConfig(train_rows=1000, calibration_rows=790))
    with pytest.raises(InvalidConfig, match="calibration_rows is 3; expected 10, one a class, or more"):
        data.load(DataConfig(calibration_rows=3))
    with pytest.raises(InvalidConfig, match=r"data\.source is 'letters'; expected digits, torchvision:NAME"):
        data.load(DataConfig(source="letters"))
