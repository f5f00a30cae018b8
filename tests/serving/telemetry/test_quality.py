"""What is counted of the answers, against prometheus_client's own histogram and counts made by hand."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from serving.combine import combine
from serving.telemetry.metrics import Metrics
from serving.telemetry.quality import (
    DISAGREEMENT,
    ENTROPY_NATS,
    MAX_CLASS_SERIES,
    MUTUAL_INFORMATION_NATS,
    class_series,
)

TINY = {"model": "tiny", "version": "1"}


def observe(
    metrics: Metrics, labels: list[str], logits_MBC: np.ndarray, mask_MB: np.ndarray, answered_B: np.ndarray
) -> None:
    model = metrics.model("tiny", "1", labels, len(logits_MBC))
    combined = combine(logits_MBC, mask_MB, np.ones((len(logits_MBC), 1)), 1.0)
    model.quality.observe(combined, mask_MB, answered_B)


def everything(rows: int, members: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((members, rows), bool), np.ones(rows, bool)


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("entropy_nats", ENTROPY_NATS),
        ("mutual_information_nats", MUTUAL_INFORMATION_NATS),
        ("disagreement_ratio", DISAGREEMENT),
    ],
)
def test_a_batch_counts_as_its_rows_one_by_one(name: str, bounds: tuple[float, ...]) -> None:
    metrics = Metrics()
    mask_MB, answered_B = everything(rows=200)
    logits_MBC = np.random.default_rng(0).normal(scale=3.0, size=(3, 200, 5))
    logits_MBC[:, :20] = 0.0  # entropy log 5, information 0: the ends of the scale
    observe(metrics, list("abcde"), logits_MBC, mask_MB, answered_B)
    combined = combine(logits_MBC, mask_MB, np.ones((3, 1)), 1.0)
    tops = combined.member_probs_MBC.argmax(2)
    values = {
        "entropy_nats": combined.entropy_B,
        "mutual_information_nats": combined.mutual_information_B,
        "disagreement_ratio": np.array([(tops[:, b] != combined.probs_BC[b].argmax()).mean() for b in range(200)]),
    }[name]

    registry = CollectorRegistry()
    expected = Histogram("expected", "one by one", buckets=bounds, registry=registry)
    for value in values:
        expected.observe(value)
    for bound in [*bounds, float("inf")]:
        le = "+Inf" if bound == float("inf") else repr(float(bound))
        ours = metrics.registry.get_sample_value(f"ensemble_{name}_bucket", TINY | {"le": le})
        assert ours == registry.get_sample_value("expected_bucket", {"le": le})
    assert metrics.registry.get_sample_value(f"ensemble_{name}_sum", TINY) == pytest.approx(values.sum())
    assert values.std() > 0


def test_disagreement_counts_the_members_that_answered_and_differ() -> None:
    metrics = Metrics()
    logits_MBC = np.zeros((4, 2, 2))
    logits_MBC[:, :, 0] = 1.0
    logits_MBC[3, :, 0] = -1.0  # one of four prefers the other class
    mask_MB = np.array([[True, True], [True, True], [True, False], [True, False]])
    observe(metrics, ["a", "b"], logits_MBC, mask_MB, np.ones(2, bool))
    assert metrics.registry.get_sample_value("ensemble_disagreement_ratio_sum", TINY) == 1 / 4 + 0 / 2
    assert metrics.registry.get_sample_value("ensemble_predicted_rows_total", TINY | {"class": "a"}) == 2


def test_a_row_of_one_member_says_nothing_about_disagreement() -> None:
    metrics = Metrics()
    mask_MB = np.array([[True, False, True], [False, True, True]])
    observe(metrics, ["a", "b"], np.random.default_rng(0).normal(size=(2, 3, 2)), mask_MB, np.ones(3, bool))
    value = metrics.registry.get_sample_value
    assert value("ensemble_entropy_nats_count", TINY) == 3
    assert value("ensemble_mutual_information_nats_count", TINY) == 1
    assert value("ensemble_disagreement_ratio_count", TINY) == 1


def test_rows_that_got_no_answer_are_not_counted() -> None:
    metrics = Metrics()
    mask_MB, _ = everything(rows=3)
    answered_B = np.array([True, False, True])
    observe(metrics, ["a", "b"], np.zeros((3, 3, 2)), mask_MB, answered_B)
    value = metrics.registry.get_sample_value
    assert value("ensemble_entropy_nats_count", TINY) == 2
    assert value("ensemble_predicted_rows_total", TINY | {"class": "a"}) == 2


@pytest.mark.parametrize("classes", [2, 64, 65, 100, 1000, 21_841])
def test_every_class_has_one_series_and_series_are_few(classes: int) -> None:
    metrics = Metrics()
    labels = [f"class {c}" for c in range(classes)]
    series = class_series(labels)
    assert len(series) == len(set(series)) == min(classes, MAX_CLASS_SERIES)
    for c in (0, 1, classes // 2, classes - 1):
        logits_MBC = np.zeros((3, 1, classes))
        logits_MBC[:, :, c] = 9.0
        observe(metrics, labels, logits_MBC, *everything(rows=1))
        (name,) = [
            name
            for name in series
            if metrics.registry.get_sample_value("ensemble_predicted_rows_total", TINY | {"class": name})
        ]
        if classes <= MAX_CLASS_SERIES:
            assert name == f"class {c}"
        else:
            first, last = map(int, name.split("-"))
            assert first <= c <= last
            assert last - first + 1 in (classes // MAX_CLASS_SERIES, classes // MAX_CLASS_SERIES + 1)
