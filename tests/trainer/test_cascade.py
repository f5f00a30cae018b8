"""A cascade against the definition, row by row, and against what its loss promises."""

import numpy as np
import pytest
import torch
from torch import Tensor

from protos.validate import validate
from trainer import cascade, temperature
from trainer.cascade import Cascade
from trainer.pipeline import Outcome


def case(rows: int, seed: int, members: int = 5, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Members that share most of what they know: logits [M, N, C], temperatures [M], targets [N]."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=generator)
    signal = 2.5 * torch.nn.functional.one_hot(targets, classes) + 1.2 * torch.randn(rows, classes, generator=generator)
    logits = signal + torch.randn(members, rows, classes, generator=generator)
    return logits, temperature.fit_all(logits, targets), targets


def fitted(rows: int, seed: int, loss: float) -> Cascade:
    logits, temperatures, targets = case(rows, seed)
    pooled = temperature.fit_pooled(logits, temperatures, targets)
    return cascade.fit(logits, temperatures, pooled, targets, loss)


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
    made = fitted(500, 0, loss=0.02)
    logits, temperatures, _ = case(300, 1)
    probs, run = made.answer(logits, temperatures)
    expected, expected_run = slow(made, logits, temperatures)
    np.testing.assert_allclose(probs, expected, atol=1e-12)
    assert run.tolist() == expected_run
    assert len(set(expected_run)) > 2


def test_prefixes_have_the_temperatures_that_fit_them_best() -> None:
    logits, temperatures, targets = case(500, 0)
    made = fitted(500, 0, loss=0.02)
    assert made.temperatures[0] == 1.0
    for k in range(1, 5):
        first = made.order[: k + 1]
        expected = temperature.fit_pooled(logits[first], temperatures[first], targets)
        assert made.temperatures[k] == pytest.approx(expected, rel=1e-6)


def lost(made: Cascade, logits: Tensor, temperatures: Tensor, targets: Tensor) -> Tensor:
    """Whether the whole mean is right and the cascade wrong, [N]."""
    whole = Cascade(made.order, made.temperatures, threshold=1.0).answer(logits, temperatures)[0].argmax(1)
    return (whole == targets) & (made.answer(logits, temperatures)[0].argmax(1) != targets)


def test_the_threshold_is_the_least_from_which_on_no_more_than_the_allowed_rows_are_lost() -> None:
    logits, temperatures, targets = case(500, 0)
    made = fitted(500, 0, loss=0.02)
    allowed = int(501 * 0.02) - 1
    confidences = torch.softmax(logits.double() / temperatures[:, None, None], -1).amax(-1).flatten()
    above = confidences[confidences > made.threshold].sort().values[::50].tolist()
    for threshold in [made.threshold, *above]:
        assert lost(Cascade(made.order, made.temperatures, threshold), logits, temperatures, targets).sum() <= allowed
    below = [
        lost(Cascade(made.order, made.temperatures, threshold), logits, temperatures, targets)
        for threshold in np.linspace(0.3, made.threshold - 1e-9, 200)
    ]
    assert torch.stack(below).any(0).sum() > allowed


@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_rows_that_took_no_part_in_the_fit_are_lost_no_more_often_than_stated(loss: float) -> None:
    shares = []
    for seed in range(60):
        made = fitted(200, seed, loss)
        logits, _, targets = case(500, 1000 + seed)
        temperatures = case(200, seed)[1]
        shares.append(float(lost(made, logits, temperatures, targets).double().mean()))
    error = float(np.std(shares) / np.sqrt(len(shares)))
    assert np.mean(shares) <= loss + 3 * error


def test_what_too_few_rows_cannot_promise_runs_every_member() -> None:
    logits, temperatures, _ = case(300, 1)
    assert fitted(998, 0, loss=0.001).threshold == 1.0
    assert fitted(999, 0, loss=0.001).threshold < 1.0
    assert (fitted(998, 0, loss=0.001).answer(logits, temperatures)[1] == 5).all()


def test_directories_hold_a_cascade_of_their_members_and_what_it_is_worth(small_run: Outcome) -> None:
    for directory in small_run.ensembles.values():
        manifest = validate(directory).manifest
        assert {stage.member for stage in manifest.cascade.stages} == {member.id for member in manifest.members}
        assert manifest.cascade.accuracy_loss == 0.005
        assert manifest.cascade.stages[-1].temperature == manifest.temperature
        assert 1.0 < manifest.cascade.members_run < len(manifest.members)
        error = {(entry.predictor, entry.split): entry.error for entry in manifest.metrics}
        assert error["cascade", "calibration"] <= error["ensemble", "calibration"] + 0.005
        assert [entry.policy for entry in manifest.conformal] == ["mean", "random", "cascade"]
