"""Our metrics against the libraries that people know, on random data, with ties and at edges."""

import calibration
import numpy as np
import pytest
import torch
from mapie.classification import SplitConformalClassifier
from mapie.metrics.classification import classification_coverage_score, classification_mean_width_score
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_specificity_at_sensitivity,
    multiclass_calibration_error,
)

from trainer import conformal, evaluate, metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def answers(rows: int, seed: int, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Probabilities of four classes, and classes drawn from what they are at sharpness 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return (sharpness * logits).softmax(1), targets


@pytest.mark.parametrize("rows", [2, 7, 15, 16, 29, 150, 152, 1000])
@pytest.mark.parametrize("decimals", [8, 1])  # 1: many rows have equal confidences
def test_debiased_calibration_error_is_the_authors(rows: int, decimals: int) -> None:
    differing = 0
    for seed in range(5):
        probs, targets = answers(rows, seed, sharpness=3.0)
        probs = probs.round(decimals=decimals)
        theirs = calibration.lower_bound_scaling_ce(probs.numpy(), targets.numpy(), num_bins=15, mode="top-label")
        assert metrics.calibration_error(probs, targets, bins=15).error == pytest.approx(theirs, abs=1e-9)
        differing += theirs > 0
    assert differing > 0 or rows < 29  # with two rows a bin or fewer there is nothing but noise


def test_ece_is_torchmetrics_where_no_confidence_lies_on_an_edge_of_a_bin() -> None:
    for seed, rows in enumerate((1, 20, 500, 3000)):
        probs, targets = answers(rows, seed, sharpness=2.0)
        theirs = multiclass_calibration_error(probs, targets, num_classes=4, n_bins=evaluate.ECE_BINS, norm="l1")
        assert evaluate.quality(probs, targets).ece == pytest.approx(float(theirs), abs=1e-6)


def test_on_an_edge_ours_belongs_to_the_bin_below_and_torchmetrics_to_the_one_above() -> None:
    """Guo et al. 2017: bins (a, b]. A sure answer shares the last bin with those that are nearly so."""
    probs = torch.tensor([[1.0, 0.0], [0.96, 0.04]], dtype=torch.float64)
    targets = torch.tensor([1, 0])
    assert evaluate.quality(probs, targets).ece == pytest.approx(0.98 - 0.5)
    theirs = multiclass_calibration_error(probs, targets, num_classes=2, n_bins=evaluate.ECE_BINS, norm="l1")
    assert float(theirs) == pytest.approx((1.0 + 0.04) / 2)


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_detection_is_torchmetrics(decimals: int) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        own = torch.rand(200, generator=generator, dtype=torch.float64).round(decimals=decimals)
        foreign = torch.rand(130, generator=generator, dtype=torch.float64).sqrt().round(decimals=decimals)
        found = metrics.detection(own, foreign)
        labels = torch.cat([torch.zeros(200), torch.ones(130)]).long()
        scores = torch.cat([own, foreign])
        assert found.auroc == pytest.approx(float(binary_auroc(scores, labels)), abs=1e-6)
        specificity, _ = binary_specificity_at_sensitivity(1 - scores, 1 - labels, min_sensitivity=0.95)
        assert found.fpr95 == pytest.approx(1 - float(specificity), abs=1e-6)


class Answers(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose rows are its answers."""

    classes_ = np.arange(4)

    def fit(self, rows: NDArray[np.float64], targets: NDArray[np.int64]) -> "Answers":
        return self

    def predict_proba(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows

    def predict(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        return rows.argmax(1)


@pytest.mark.parametrize("rows", [99, 100, 199, 387])
@pytest.mark.parametrize("distinct", [0, 6])  # so many different answers alone: scores are equal
def test_conformal_sets_are_mapies(rows: int, distinct: int) -> None:
    levels = [0.5, 0.8, 0.9, 0.95]
    for seed in range(3):
        probs, targets = answers(rows + 300, seed, sharpness=1.5)
        if distinct:
            probs = probs[torch.arange(len(probs)) % distinct]
        fitted, new = (probs[:rows], targets[:rows]), (probs[rows:], targets[rows:])
        theirs = SplitConformalClassifier(Answers(), confidence_level=levels, conformity_score="lac", prefit=True)
        theirs.conformalize(fitted[0].numpy(), fitted[1].numpy())
        _, sets = theirs.predict_set(new[0].numpy())
        coverage = classification_coverage_score(new[1].numpy(), sets)
        width = classification_mean_width_score(sets)
        scores = conformal.scores(*fitted)[:, None]
        for i, level in enumerate(levels):
            threshold = conformal.quantile(scores, level)
            mine = 1.0 - new[0] <= threshold
            np.testing.assert_array_equal(mine.numpy(), sets[:, :, i])
            assert float((conformal.scores(*new) <= threshold).double().mean()) == pytest.approx(coverage[i])
            assert float(mine.sum(1).double().mean()) == pytest.approx(width[i])
            likeliest = torch.nn.functional.one_hot(new[0].argmax(1), 4).bool()
            assert torch.equal(conformal.prediction_sets(new[0], threshold), mine | likeliest)
