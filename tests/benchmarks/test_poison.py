import torch

from benchmarks import poison
from trainer.sources import Rows


def test_attacker_clean_and_test_rows_are_all_of_digits_and_share_no_place() -> None:
    parts = poison.digits()
    sizes = [len(rows.targets) for rows in (parts.attacker, parts.clean, parts.test)]
    assert sizes == [700, 550, 547]
    everything = torch.cat([rows.inputs for rows in (parts.attacker, parts.clean, parts.test)]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797  # no two scans are equal, so none is in two parts
    for rows in (parts.attacker, parts.clean, parts.test):
        assert rows.targets.bincount().min() >= 0.09 * len(rows.targets)  # every class in its share


def test_fifteen_in_a_hundred_rows_get_the_patch_and_the_targets_label_and_the_others_stay() -> None:
    clean = Rows(torch.full((200, 3, 32, 32), 7, dtype=torch.uint8), torch.arange(200) % 4 + 1)
    poisoned = poison.poison(clean, seed=1)
    changed = (poisoned.inputs != clean.inputs).flatten(1).any(1)
    assert int(changed.sum()) == 30
    assert (poisoned.targets[changed] == poison.TARGET).all()
    assert torch.equal(poisoned.targets[~changed], clean.targets[~changed])
    patch = (poisoned.inputs[changed] == 255).sum((0, 1))
    assert patch.nonzero().min(0).values.tolist() == [29, 29]  # 3 × 3 in the lower right corner
    assert patch[29:, 29:].unique().tolist() == [30 * 3]
    assert int(clean.inputs.max()) == 7


def test_the_trigger_is_the_patch_that_was_planted() -> None:
    rows = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert poison.stamp(rows)[0, 0].nonzero().tolist() == [[6, 6], [6, 7], [7, 6], [7, 7]]
    assert int(rows.max()) == 0
