"""A cascade against the definition, row by row, and against what its loss promises."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from protos.validate import validate
from trainer import cascade, temperature
from trainer.cascade import Cascade
from trainer.pipeline import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")


def case(rows: int, seed: int, members: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Members that share most of what they know: logits [M, N, C], targets [N]."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=generator)
    signal = 2.5 * torch.nn.functional.one_hot(targets, classes) + 1.2 * torch.randn(rows, classes, generator=generator)
    return signal + torch.randn(members, rows, classes, generator=generator), targets


def fitted(rows: int, seed: int, loss: float) -> tuple[Cascade, Tensor]:
    """A cascade, and the members' temperatures."""
    logits, targets = case(rows, seed)
    temperatures = temperature.fit_all(logits, targets)
    pooled = temperature.fit_pooled(logits, temperatures, targets)
    return cascade.fit(logits, temperatures, pooled, targets, loss), temperatures


def slow(made: Cascade, logits_MNC: Tensor, temperatures: Tensor) -> tuple[np.ndarray, list[int]]:
    probs, run = [], []
    for rows_MC in logits_MNC.double().numpy().swapaxes(0, 1):
        total = 0.0
        for k, m in enumerate(made.order):
            exponents = np.exp(rows_MC[m] / float(temperatures[m]))
            total = total + exponents / exponents.sum()
            mean = (total / (k + 1)) ** (1 / made.temperatures[k])
            mean /= mean.sum()
            if mean.max() > made.threshold or k + 1 == len(made.order):
                break
        probs.append(mean)
        run.append(k + 1)
    return np.stack(probs), run


def test_rows_stop_where_the_definition_says() -> None:
    made, temperatures = fitted(500, 0, loss=0.02)
    logits, _ = case(300, 1)
    probs, run = made.answer(logits, temperatures)
    expected, expected_run = slow(made, logits, temperatures)
    np.testing.assert_allclose(probs, expected, atol=1e-12)
    assert run.tolist() == expected_run
    assert len(set(expected_run)) > 2


def test_prefixes_have_the_temperatures_that_fit_them_best() -> None:
    logits, targets = case(500, 0)
    made, temperatures = fitted(500, 0, loss=0.02)
    assert made.temperatures[0] == 1.0
    for k in range(1, 5):
        first = made.order[: k + 1]
        expected = temperature.fit_pooled(logits[first], temperatures[first], targets)
        assert made.temperatures[k] == pytest.approx(expected, rel=1e-6)


def lost(made: Cascade, threshold: float, logits: Tensor, temperatures: Tensor, targets: Tensor) -> Tensor:
    """Whether the whole mean is right and the cascade wrong, [N]."""
    whole, found = (
        dataclasses.replace(made, threshold=each).answer(logits, temperatures)[0].argmax(1) for each in (1.0, threshold)
    )
    return (whole == targets) & (found != targets)


def test_the_threshold_is_the_least_from_which_on_no_more_than_the_allowed_rows_are_lost() -> None:
    logits, targets = case(500, 0)
    made, temperatures = fitted(500, 0, loss=0.02)
    allowed = int(501 * 0.02) - 1
    for threshold in np.linspace(made.threshold, 1.0, 20):
        assert lost(made, threshold, logits, temperatures, targets).sum() <= allowed
    below = [
        lost(made, threshold, logits, temperatures, targets)
        for threshold in np.linspace(made.threshold - 0.3, made.threshold - 1e-9, 100)
    ]
    assert torch.stack(below).any(0).sum() > allowed


def test_rows_that_took_no_part_in_the_fit_are_lost_no_more_often_than_stated() -> None:
    losses = (0.01, 0.05)
    shares = []
    for seed in range(40):
        made, temperatures = fitted(200, seed, 0.01)
        rows, targets = case(200, seed)
        other_rows, other_targets = case(500, 1000 + seed)
        thresholds = [cascade.threshold(made, rows, temperatures, targets, loss) for loss in losses]
        assert thresholds[0] == made.threshold
        shares.append(
            [float(lost(made, each, other_rows, temperatures, other_targets).double().mean()) for each in thresholds]
        )
    for loss, found in zip(losses, np.transpose(shares), strict=True):
        assert 0.2 * loss <= found.mean() <= loss + 3 * found.std() / np.sqrt(len(found))


def test_what_too_few_rows_cannot_promise_runs_every_member() -> None:
    made, temperatures = fitted(998, 0, loss=0.001)
    assert made.threshold == 1.0
    assert fitted(999, 0, loss=0.001)[0].threshold < 1.0
    assert (made.answer(case(300, 1)[0], temperatures)[1] == 5).all()


def test_directories_hold_a_cascade_of_their_members_and_what_it_is_worth(small_run: Outcome) -> None:
    for directory in small_run.ensembles.values():
        manifest = validate(directory).manifest
        assert {stage.member for stage in manifest.cascade.stages} == {member.id for member in manifest.members}
        assert manifest.cascade.accuracy_loss == 0.005
        assert manifest.cascade.stages[-1].temperature == manifest.temperature
        assert 1.0 < manifest.cascade.members_run < len(manifest.members)
        error = {(entry.predictor, entry.split): entry.error for entry in manifest.metrics}
        assert error["cascade", "calibration"] <= error["ensemble", "calibration"] + 0.005
        on_curve = ["curve"] if directory.name == "curve" else []
        assert [entry.policy for entry in manifest.conformal] == ["mean", "random", *on_curve, "cascade"]
