"""The target answers as the server does, and can be differentiated in raw rows."""

import dataclasses

import pytest
import safetensors.torch
import torch

from tests.trainer.attack.two_classes import linear
from trainer import finished_run, temperature
from trainer.attack import ball, target
from trainer.attack.target import Target
from trainer.pipeline import Outcome


@pytest.mark.parametrize("method", ["fge", "curve"])
def test_it_answers_with_the_stored_ensembles_tempered_probabilities(small_run: Outcome, method: str) -> None:
    run = finished_run.load(small_run.report.parent)
    stored = safetensors.torch.load_file(run.folder / "logits" / f"{method}.safetensors")["test"][:, :40]
    manifest = run.ensembles[method].manifest
    temperatures = torch.tensor([member.temperature for member in manifest.members], dtype=torch.float64)
    attacked = target.load(run, method)
    rows = ball.floats(run.splits.test.inputs[:40])
    with torch.no_grad():
        mean, members = attacked.mean(rows), attacked.log_probs(rows).exp()
    torch.testing.assert_close(mean, temperature.pool(stored, temperatures, manifest.temperature), rtol=0, atol=1e-5)
    expected = torch.softmax(stored.double() / temperatures[:, None, None], -1)
    torch.testing.assert_close(members, expected, rtol=0, atol=1e-5)


def test_gradients_in_raw_rows_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    whole = linear(([2.0, -1.0], 0.3), ([0.5, 1.5], -0.2))
    whole = dataclasses.replace(whole, temperatures=torch.tensor([0.7, 1.3], dtype=torch.float64), temperature=0.8)
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(whole.mean_log_probs, (rows,))
    assert torch.autograd.gradcheck(whole.log_probs, (rows,))


def test_the_loss_of_a_network_that_is_sure_still_has_a_gradient() -> None:
    """e^−30 is nothing beside 1 in float32; what an attack follows must not be."""
    sure = Target([lambda rows: torch.stack([torch.zeros_like(rows[:, 0]), rows[:, 0]], 1)], torch.ones(1))
    rows = torch.full((1, 1), 30.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(-sure.member_log_probs(0, rows)[0, 1], rows)
    assert float(gradient) == pytest.approx(-torch.exp(torch.tensor(-30.0)).item(), rel=1e-6)


def test_a_single_member_answers_with_its_own_temperature_alone() -> None:
    whole = dataclasses.replace(linear(([1.0], 0.0), ([2.0], 0.0)), temperature=0.5)
    rows = torch.tensor([[1.0]])
    torch.testing.assert_close(whole.member(1).mean(rows), whole.member_log_probs(1, rows).exp())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_clipped_shift_stays_in_the_ball_and_among_the_pixels(norm: str) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (32, 1, 3, 3), dtype=torch.uint8)
    pixels[0], pixels[1] = 0, 255
    around, clean = ball.around(pixels, norm, 20.0), ball.floats(pixels)
    for shift in (around.clip(clean, 100 * torch.randn_like(clean)), around.draw(clean)):
        length = shift.flatten(1).norm(dim=1, p=torch.inf if norm == "linf" else 2)
        assert length.max() <= 20.0 + 1e-4
        assert length.max() > 15.0
        assert (clean + shift).min() >= 0.0
        assert (clean + shift).max() <= 255.0
    free = ball.around(torch.zeros(1, 2), norm, 3.0)
    assert (free.low, free.high) == (-torch.inf, torch.inf)
