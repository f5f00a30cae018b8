"""A contender's numbers against the definitions, and against what a server computes."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor

from serving import combine
from serving import conformal as served
from trainer import conformal, evaluate, metrics
from trainer.shift.contender import Contender
from trainer.shift.results import COVERAGES

pytestmark = pytest.mark.usefixtures("one_thread")


def answered(rows: int, seed: int, members: int = 3, skill: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 4, (rows,), generator=generator)
    logits_MNC = torch.randn(members, rows, 4, generator=generator)
    logits_MNC[:, torch.arange(rows), targets] += skill
    return 2 * logits_MNC, targets


def test_on_its_own_calibration_rows_sets_cover_their_level_and_no_less_than_the_likeliest_class_does() -> None:
    logits, targets = answered(199, 0, skill=1.0)
    contender = Contender(logits, targets, 0.9)
    measured, _ = contender.clean(logits, targets)
    assert measured.quality.error > 0.1  # or the likeliest class alone would do
    assert measured.coverage == pytest.approx(180 / 199)  # ⌈200 · 0.9⌉ of them
    assert 1.0 < measured.set_size < 4.0
    assert Contender(logits, targets, 0.5).clean(logits, targets)[0].coverage >= 1 - measured.quality.error


def test_answers_sets_and_scores_are_a_servers() -> None:
    calibration, targets = answered(150, 1)
    contender = Contender(calibration, targets, 0.95)
    logits, labels = answered(80, 2, skill=1.0)
    measured, _ = contender.clean(logits, labels)
    temperatures, pooled = contender.tempered.temperatures.numpy(), contender.tempered.pooled
    mask = np.ones(logits.shape[:2], dtype=bool)
    theirs = combine.combine(logits.numpy(), mask, temperatures[:, None], pooled)
    sets = served.prediction_set(theirs.probs_BC, contender.threshold)
    assert measured.coverage == sets[np.arange(80), labels.numpy()].mean()
    assert measured.set_size == sets.sum(1).mean()
    quality = evaluate.quality(torch.from_numpy(theirs.probs_BC), labels)
    assert astuple(measured.quality) == pytest.approx(astuple(quality), rel=1e-12)
    own = contender.tempered.unfamiliarity(logits)
    np.testing.assert_allclose(own["entropy"], theirs.entropy_B, atol=1e-12)
    np.testing.assert_allclose(own["mutual information"], theirs.mutual_information_B, atol=1e-12)
    np.testing.assert_allclose(own["energy"], combine.energy(logits.numpy(), mask), atol=1e-12)


def test_the_same_rows_are_not_told_apart_and_rows_of_no_class_are() -> None:
    calibration, targets = answered(150, 1)
    contender = Contender(calibration, targets, 0.9)
    contender.clean(calibration, targets)
    assert [found.auroc for found in contender.foreign(calibration).values()] == pytest.approx([0.5] * 3)
    strange, _ = answered(150, 3, skill=0.0)
    found = contender.foreign(strange)
    assert set(found) == {"entropy", "mutual information", "energy"}
    assert all(detection.auroc > 0.6 for detection in found.values())
    alone = Contender(calibration[:1], targets, 0.9)
    alone.clean(calibration[:1], targets)
    assert set(alone.foreign(strange[:1])) == {"entropy", "energy"}


def test_risk_is_kept_at_every_hundredth_and_pooled_over_corruptions() -> None:
    calibration, targets = answered(150, 1)
    contender = Contender(calibration, targets, 0.9)
    measured, risk = contender.clean(calibration, targets)
    assert len(risk) == len(COVERAGES)
    assert risk[-1] == pytest.approx(measured.quality.error)
    parts = [answered(100, seed, skill=1.0) for seed in (4, 5)]
    errors = [contender.corrupted(*part).quality.error for part in parts]
    assert contender.corrupted_risk()[-1] == pytest.approx(sum(errors) / 2)
    assert contender.corrupted_risk()[9] < sum(errors) / 2


def test_thresholds_that_rows_cannot_give_hold_every_class() -> None:
    logits, targets = answered(50, 0)
    contender = Contender(logits, targets, 0.99)
    assert contender.threshold == 1.0
    assert contender.clean(logits, targets)[0].set_size == 4.0
    assert conformal.prediction_sets(torch.tensor([[0.5, 0.5, 0.0]]), 0.1).tolist() == [[True, False, False]]


def test_energy_is_the_members_mean_whatever_their_temperatures() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]])
    assert metrics.energy(logits).tolist() == pytest.approx([-0.5 - float(torch.tensor(2.0).log())])
    assert metrics.energy(torch.tensor([[[1e4, -1e4]]])).tolist() == [-1e4]
