import math
from collections.abc import Sequence
from itertools import pairwise, permutations
from statistics import mean

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import nll_loss

from trainer import metrics


def calibrated(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Probabilities, and targets drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    probs = (torch.randn(rows, 4, generator=generator, dtype=torch.float64) * 2).softmax(1)
    return probs, torch.multinomial(probs, 1, generator=generator)[:, 0]


def test_calibration_error_equals_a_calculation_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.6, 0.7, 0.8], dtype=torch.float64)
    found = metrics.calibration_error(torch.stack([confidence, 1 - confidence], 1), torch.tensor([0, 0, 1, 0]), bins=2)
    # {0.6 right, 0.7 wrong}: (0.65 − 0.5)² − 0.25 / 1; {0.8, 0.9, both right}: (0.85 − 1)² − 0
    assert found.squared == pytest.approx((0.0225 - 0.25) / 2 + 0.0225 / 2)
    assert found.error == 0.0
    values = [v for b in found.bins for v in (b.low, b.high, b.rows, b.accuracy, b.confidence)]
    assert values == pytest.approx([0.6, 0.7, 2, 0.5, 0.65, 0.8, 0.9, 2, 1.0, 0.85])


def test_calibrated_answers_have_no_squared_error_on_average_and_shifted_ones_the_shift() -> None:
    found = [metrics.calibration_error(*calibrated(300, seed)) for seed in range(200)]
    biased = mean(sum(b.rows / 300 * (b.confidence - b.accuracy) ** 2 for b in one.bins) for one in found)
    assert biased > 0.005  # what the estimator without the correction sees
    assert abs(mean(one.squared for one in found)) < 0.0005
    probs = torch.tensor([[0.9, 0.1]]).repeat(10_000, 1)
    shifted = metrics.calibration_error(probs, (torch.arange(10_000) % 10 >= 7).long())
    assert shifted.error == pytest.approx(0.2, abs=1e-3)


def test_equal_confidences_share_a_bin_and_few_rows_make_few_bins() -> None:
    probs = torch.tensor([[0.7, 0.3]]).repeat(30, 1)
    assert [b.rows for b in metrics.calibration_error(probs, torch.zeros(30, dtype=torch.int64)).bins] == [30]
    probs, targets = calibrated(3, 0)
    assert [b.rows for b in metrics.calibration_error(probs, targets).bins] == [1, 1, 1]
    probs, targets = calibrated(152, 0)
    assert {b.rows for b in metrics.calibration_error(probs, targets, bins=15).bins} == {10, 11}


def test_calibrated_log_likelihood_is_that_of_calibrated_answers_whatever_their_temperature() -> None:
    probs, targets = calibrated(4000, 1)
    plain = -float(nll_loss(probs.log(), targets))
    found = metrics.calibrated_log_likelihood(probs, targets)
    assert found == pytest.approx(plain, abs=2e-3)
    sharpened = (probs.log() * 3).softmax(1)
    assert metrics.calibrated_log_likelihood(sharpened, targets) == pytest.approx(found, abs=1e-6)
    assert -float(nll_loss(sharpened.log(), targets)) < found - 0.1


def test_no_half_is_scored_at_its_own_temperature() -> None:
    probs = torch.tensor([[0.8, 0.2], [0.8, 0.2]], dtype=torch.float64)
    # The half with the right answer gets the greatest temperature, the other's; the wrong one the least.
    worst = [math.log(torch.softmax(probs[0].log() / t, 0)[y]) for t, y in ((10.0, 0), (0.1, 1))]
    assert metrics.calibrated_log_likelihood(probs, torch.tensor([0, 1])) == pytest.approx(mean(worst))


def test_equal_seeds_halve_the_rows_equally() -> None:
    probs, targets = calibrated(100, 2)
    found = [metrics.calibrated_log_likelihood(probs, targets, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("value", "curve", "expected", "text"),
    [
        (-0.9, [-1.0, -0.8, -0.7], 1.5, "1.5"),
        (-1.0, [-1.0, -0.8, -0.7], 1.0, "1.0"),
        (-0.7, [-1.0, -0.8, -0.7], 3.0, "3.0"),
        (-1.1, [-1.0, -0.8, -0.7], 1.0, "< 1"),
        (-0.6, [-1.0, -0.8, -0.7], 3.0, "> 3"),
        (-0.75, [-1.0, -0.7, -0.8, -0.6], 1 + 0.25 / 0.3, "1.8"),  # the least size that does it
    ],
)
def test_the_deep_ensemble_equivalent_lies_on_the_line_or_outside(
    value: float, curve: Sequence[float], expected: float, text: str
) -> None:
    found = metrics.deep_ensemble_equivalent(value, curve)
    assert found.networks == pytest.approx(expected)
    assert str(found) == text


def test_diversity_equals_scipys_pair_by_pair() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 20, 4, generator=generator) * 2
    targets = torch.randint(0, 4, (20,), generator=generator)
    found, probs, predicted = metrics.diversity(logits, targets), logits.double().softmax(-1).numpy(), logits.argmax(-1)
    for i in range(3):
        for j in range(3):
            differ = [int(predicted[i, n]) != int(predicted[j, n]) for n in range(20)]
            assert found.disagreement[i, j] == mean(differ)
            kl = mean(scipy_entropy(probs[i, n], probs[j, n]) for n in range(20))
            assert float(found.kl[i, j]) == pytest.approx(kl, abs=1e-12)
            js = mean(jensenshannon(probs[i, n], probs[j, n]) ** 2 for n in range(20)) if i != j else 0.0
            assert float(found.jensen_shannon[i, j]) == pytest.approx(js, abs=1e-12)
    pairs = [float(found.disagreement[pair]) for pair in ((0, 1), (0, 2), (1, 2))]
    assert found.mean_disagreement == pytest.approx(mean(pairs))
    error = mean(int(predicted[m, n]) != int(targets[n]) for m in range(3) for n in range(20))
    assert found.normalised_disagreement == pytest.approx(mean(pairs) / error)


def test_members_sure_of_different_classes_are_ln_2_apart_and_no_number_is_lost() -> None:
    logits = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])
    found = metrics.diversity(logits, torch.tensor([0]))
    assert float(found.jensen_shannon[0, 1]) == pytest.approx(math.log(2))
    assert found.kl.isfinite().all()
    assert found.kl[0, 1] > 700


def test_one_member_that_never_errs_disagrees_with_nobody() -> None:
    found = metrics.diversity(torch.tensor([[[4.0, 0.0]]]), torch.tensor([0]))
    assert (found.mean_disagreement, found.normalised_disagreement) == (0.0, 0.0)
    assert found.kl.tolist() == found.jensen_shannon.tolist() == [[0.0]]


def test_entropy_and_mutual_information_of_members_that_contradict_each_other() -> None:
    probs = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    assert metrics.entropy(probs).flatten().tolist() == pytest.approx([0.0, math.log(2)] * 2)
    assert metrics.mutual_information(probs).tolist() == pytest.approx([math.log(2), 0.0])


def test_detection_equals_counting_pairs_and_rows() -> None:
    generator = torch.Generator().manual_seed(5)
    own, foreign = torch.randn(60, generator=generator), torch.randn(45, generator=generator) + 1
    own, foreign = (own * 4).round() / 4, (foreign * 4).round() / 4  # with ties
    found = metrics.detection(own, foreign)
    wins = mean(float(f > o) + 0.5 * float(f == o) for f in foreign for o in own)
    assert found.auroc == pytest.approx(wins)
    labels, scores = torch.cat([torch.zeros(60), torch.ones(45)]), torch.cat([own, foreign])
    assert found.auroc == pytest.approx(roc_auc_score(labels.numpy(), scores.numpy()))
    threshold = own.sort().values[57 - 1]  # 95 % of 60 own rows score no more
    assert found.fpr95 == pytest.approx(float((foreign <= threshold).double().mean()))


def test_what_scores_apart_is_detected_without_a_mistake_and_the_same_not_at_all() -> None:
    own = torch.arange(20.0)
    assert metrics.detection(own, own + 100) == metrics.Detection(1.0, 0.0)
    assert metrics.detection(own, own) == metrics.Detection(0.5, 0.95)


def test_risk_of_a_confidence_that_knows_every_mistake_has_a_closed_form() -> None:
    """N rows, the last E in order of confidence wrong: k mistakes among the surest N − E + k."""
    rows, errors = 40, 7
    wrong = torch.arange(rows) >= rows - errors
    found = metrics.risk_coverage(torch.linspace(1, 0, rows), wrong)
    assert found.area == pytest.approx(sum(k / (rows - errors + k) for k in range(1, errors + 1)) / rows)
    assert found.coverage.tolist() == pytest.approx([(i + 1) / rows for i in range(rows)])
    reverse = metrics.risk_coverage(torch.linspace(0, 1, rows), wrong)
    assert reverse.area == pytest.approx((errors + sum(errors / n for n in range(errors + 1, rows + 1))) / rows)
    assert float(found.risk[-1]) == pytest.approx(errors / rows)


def test_a_confidence_that_says_nothing_risks_the_error_at_every_coverage() -> None:
    found = metrics.risk_coverage(torch.full((30,), 0.7), torch.arange(30) < 6)
    assert found.risk.tolist() == pytest.approx([0.2] * 30)
    assert found.area == pytest.approx(0.2)
    assert metrics.risk_coverage(torch.ones(1), torch.tensor([True])).area == 1.0


def test_risk_of_equal_confidences_is_the_mean_over_all_their_orders() -> None:
    confidence = torch.tensor([0.5, 0.9, 0.5, 0.2, 0.5, 0.9])
    wrong = torch.tensor([True, False, False, True, False, True])
    orders = [order for order in permutations(range(6)) if all(a >= b for a, b in pairwise(confidence[list(order)]))]
    assert len(orders) == 2 * 6
    risks = [wrong[list(order)].double().cumsum(0) / torch.arange(1, 7) for order in orders]
    torch.testing.assert_close(metrics.risk_coverage(confidence, wrong).risk, torch.stack(risks).mean(0))
