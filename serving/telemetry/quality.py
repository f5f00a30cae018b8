"""How the answers look at run time, so that drift shows: a model that becomes unsure, members that part, classes that
come more often than they did. Counted by whole batches, since a call for every row would cost more than combining it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.combine import Combined

# Upper bounds, geometric: to 16 nats, which is beyond log of a million classes.
ENTROPY_NATS = tuple(2.0**i for i in range(-10, 5))
MUTUAL_INFORMATION_NATS = tuple(2.0**i for i in range(-14, 4))
DISAGREEMENT = tuple(i / 8 for i in range(9))
MOST_UNCOUNTED = 100
MAX_CLASS_SERIES = 64  # with more classes, neighbours in the manifest's order share a series


class Distribution:
    """A histogram that takes many values at once, and counts them when it is asked, or has a hundred batches."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._uncounted: list[NDArray[np.float64]] = []

    def observe(self, values: NDArray[np.float64]) -> None:
        self._uncounted.append(values)
        if len(self._uncounted) >= MOST_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        values = np.concatenate([*self._uncounted, np.empty(0)])
        self._uncounted.clear()
        # A bucket holds what is less or equal: Prometheus' `le`.
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._sum += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        self._count()
        bounds = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(bounds, np.cumsum(self._counts).astype(float).tolist(), strict=True))

    def sum(self) -> float:
        self._count()
        return self._sum


class Quality:
    """Of one model. `observe` in the batch's thread, `Families` in the scraper's."""

    def __init__(self, class_labels: Sequence[str]) -> None:
        self.lock = threading.Lock()
        self.entropy = Distribution(ENTROPY_NATS)
        self.mutual_information = Distribution(MUTUAL_INFORMATION_NATS)
        self.disagreement = Distribution(DISAGREEMENT)
        self.classes = class_series(class_labels)
        self._series_C = np.arange(len(class_labels)) * len(self.classes) // max(len(class_labels), 1)
        self.predicted = np.zeros(len(self.classes), np.int64)

    def observe(self, combined: Combined, mask_MB: NDArray[np.bool_], answered_B: NDArray[np.bool_]) -> None:
        """answered_B: whether row b got an answer; others say nothing about the model."""
        members_B = mask_MB.sum(axis=0)
        compared_B = answered_B & (members_B > 1)  # one member agrees with itself
        top_B = combined.probs_BC.argmax(axis=1)
        differs_MB = (combined.member_probs_MBC.argmax(axis=2) != top_B) & mask_MB
        with self.lock:
            self.entropy.observe(combined.entropy_B[answered_B])
            self.mutual_information.observe(combined.mutual_information_B[compared_B])
            self.disagreement.observe((differs_MB.sum(axis=0) / members_B)[compared_B])
            self.predicted += np.bincount(self._series_C[top_B[answered_B]], minlength=len(self.predicted))


def class_series(class_labels: Sequence[str]) -> list[str]:
    """The values of the label `class`: the classes' own names; beyond MAX_CLASS_SERIES ranges of indices, "0-15"."""
    classes = len(class_labels)
    if classes <= MAX_CLASS_SERIES:
        return list(class_labels)
    series_C = np.arange(classes) * MAX_CLASS_SERIES // classes
    starts = np.searchsorted(series_C, np.arange(MAX_CLASS_SERIES)).tolist()
    return [f"{start}-{end - 1}" for start, end in zip(starts, [*starts[1:], classes], strict=True)]


class Families(Collector):
    """What Prometheus reads. models: (name, version) and the quality of each that is served now."""

    def __init__(self, models: Callable[[], Iterable[tuple[tuple[str, str], Quality]]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        entropy = HistogramMetricFamily("ensemble_entropy_nats", "Entropy of a row's answer", labels=labels)
        information = HistogramMetricFamily(
            "ensemble_mutual_information_nats", "How far the members of a row disagree, in nats", labels=labels
        )
        disagreement = HistogramMetricFamily(
            "ensemble_disagreement_ratio", "Members of a row whose top class is not the answer's", labels=labels
        )
        predicted = CounterMetricFamily("ensemble_predicted_rows", "Rows by top class", labels=[*labels, "class"])
        for model, quality in self._models():
            with quality.lock:
                for family, distribution in (
                    (entropy, quality.entropy),
                    (information, quality.mutual_information),
                    (disagreement, quality.disagreement),
                ):
                    family.add_metric(model, distribution.buckets(), distribution.sum())
                for label, rows in zip(quality.classes, quality.predicted.tolist(), strict=True):
                    predicted.add_metric([*model, label], rows)
        yield from (entropy, information, disagreement, predicted)
