"""PGD against closed forms, and what training with it does: to the statistics, to robustness, to repeatability."""

import dataclasses
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from protos.validate import validate
from tests.trainer.networks import Silent, batchnorm_network, random_split
from trainer import batchnorm, data, pipeline, train
from trainer.adversary import perturb
from trainer.checkpoint import Checkpoints
from trainer.config import AdversaryConfig, EndpointConfig, SgdConfig, override
from trainer.data import Split
from trainer.errors import InvalidConfig
from trainer.network import Network, Placement, Statistics
from trainer.objective import Objective, cross_entropy
from trainer.progress import Progress
from trainer.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = Progress(Console(quiet=True))
SHORT = [
    'methods=["sse","fge","curve"]', "endpoint.epochs=2", "sse.cycles=2", "sse.cycle_epochs=1", "fge.start_epochs=[1]",
    "fge.epochs=2", "fge.cycle_epochs=1", "fge.trace_every=0", "curve.epochs=2", "curve.members=3", "curve.grid=3",
    "adversary.epsilon=16", "adversary.steps=2", "adversary.step_size=8",
]  # fmt: skip


def norms(shift: Tensor, norm: str) -> Tensor:
    return shift.flatten(1).norm(dim=1, p=torch.inf if norm == "linf" else 2)


def test_against_a_linear_score_it_finds_the_worst_row_of_the_ball() -> None:
    torch.manual_seed(0)
    w, rows = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(5, 3, 2, 4, dtype=torch.float64)

    def loss(inputs: Tensor) -> Tensor:
        return -(inputs * w).sum()  # rises as the score w·x falls

    linf = AdversaryConfig("linf", epsilon=0.3, steps=5, step_size=0.2, random_start=True)
    torch.testing.assert_close(perturb(loss, rows, linf), rows - 0.3 * w.sign(), rtol=0, atol=1e-12)
    l2 = AdversaryConfig("l2", epsilon=0.3, steps=5, step_size=0.2, random_start=False)
    torch.testing.assert_close(perturb(loss, rows, l2), rows - 0.3 * w / w.norm(), rtol=0, atol=1e-12)
    started = AdversaryConfig("l2", epsilon=0.3, steps=300, step_size=0.2, random_start=True)
    torch.testing.assert_close(perturb(loss, rows, started), rows - 0.3 * w / w.norm(), rtol=0, atol=1e-9)
    within = AdversaryConfig("l2", epsilon=9.0, steps=2, step_size=0.2, random_start=False)
    torch.testing.assert_close(perturb(loss, rows, within), rows - 0.4 * w / w.norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_a_row_never_leaves_the_ball_nor_the_range_of_pixels(norm: str, random_start: bool) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (64, 1, 5, 5), dtype=torch.uint8)
    pixels[:8], pixels[8:16] = 0, 255
    w = torch.randn(1, 5, 5)
    for steps in (1, 3, 20):
        config = AdversaryConfig(norm, epsilon=40.0, steps=steps, step_size=25.0, random_start=random_start)
        moved = perturb(lambda inputs: (inputs * w).sin().sum(), pixels, config)
        assert moved.dtype == torch.float32
        assert not moved.requires_grad
        assert 0.0 <= float(moved.min()) <= float(moved.max()) <= 255.0
        assert float(norms(moved - pixels, norm).max()) <= 40.0 + 1e-3
        floats = perturb(lambda inputs: (inputs * w).sin().sum(), pixels.float(), config)
        assert float(floats.min()) < 0.0  # float rows have no bounds
        assert float(norms(floats - pixels, norm).max()) <= 40.0 + 1e-3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_random_start_is_uniform_in_the_ball(norm: str) -> None:
    torch.manual_seed(0)
    config = AdversaryConfig(norm, epsilon=2.0, steps=1, step_size=1e-9, random_start=True)
    shift = perturb(lambda inputs: inputs.sum(), torch.zeros(20_000, 3), config)
    quantiles = (norms(shift, norm) / 2.0) ** 3  # volume grows with the cube: uniform in [0, 1] for either ball
    for level in (0.1, 0.5, 0.9):
        assert float((quantiles < level).float().mean()) == pytest.approx(level, abs=0.015)
    assert shift.mean(0).abs().max() < 0.03


def test_a_gradient_too_small_to_square_still_has_a_direction_and_none_moves_nothing() -> None:
    rows, w = torch.zeros(2, 3), torch.tensor([[3e-30, 0.0, 4e-30], [0.0, 0.0, 0.0]])
    config = AdversaryConfig("l2", epsilon=10.0, steps=1, step_size=5.0, random_start=False)
    moved = perturb(lambda inputs: (inputs * w).sum(), rows, config)
    torch.testing.assert_close(moved, torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_sees_a_greater_loss_and_moves_the_statistics_once(norm: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, split = batchnorm_network(), random_split(16)
    network.to(Placement(training_dtype=dtype))
    weights, moved = network.initial_weights(), network.initial_statistics()
    clean, gradient = Objective(network).gradient(weights, network.initial_statistics(), split.inputs, split.targets)
    adversary = AdversaryConfig(norm, epsilon=0.3, steps=5, step_size=0.1, random_start=False)
    before = network.module.get_buffer("1.num_batches_tracked").clone()
    loss, hardened = Objective(network, adversary=adversary).gradient(weights, moved, split.inputs, split.targets)
    assert float(loss) > float(clean)
    assert not torch.equal(gradient, hardened)
    assert int(network.module.get_buffer("1.num_batches_tracked") - before) == 1

    # What moved them is one pass over the perturbed batch, of which the first layer's mean is known.
    copies = network.initial_statistics()
    rows = perturb(
        lambda inputs: network.training_loss(weights, copies, inputs, split.targets, cross_entropy),
        split.inputs,
        adversary,
    )
    once = network.initial_statistics()
    network.gradient(weights, once, rows, split.targets, cross_entropy)
    for name, tensor in moved.items():
        assert torch.equal(tensor, once[name]), name
    convolution = torch.nn.functional.conv2d(rows, *list(network.unflatten(weights).values())[:2], padding=1)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(moved["1.running_mean"], 0.1 * convolution.mean((0, 2, 3)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_below_fp16s_least_still_has_its_direction(norm: str) -> None:
    torch.manual_seed(0)
    network, split = batchnorm_network(), random_split(16)
    weights = network.initial_weights()
    adversary = AdversaryConfig(norm, epsilon=0.3, steps=1, step_size=0.3, random_start=False)
    shifts = []
    for dtype in (torch.float32, torch.float16):
        seen: list[Tensor] = []
        network.to(Placement(training_dtype=dtype))
        objective = Objective(network, lambda logits, targets: 1e-6 * cross_entropy(logits, targets), adversary)
        hook = network.module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        objective.gradient(weights, network.initial_statistics(), split.inputs, split.targets)
        hook.remove()
        shifts.append((seen[-1] - seen[0]).flatten())  # of the step that trains, from the clean rows
    assert torch.nn.functional.cosine_similarity(*shifts, dim=0) > 0.9


def accuracy_under_attack(
    network: Network, weights: Tensor, statistics: Statistics, split: Split, attack: AdversaryConfig
) -> float:
    """In evaluation mode: of the network as it would be served."""

    def loss(inputs: Tensor) -> Tensor:
        return cross_entropy(network.logits(weights, statistics, inputs), split.targets)

    with network.evaluating():
        logits = network.logits(weights, statistics, perturb(loss, split.inputs, attack))
    return float((logits.argmax(1) == split.targets).double().mean())


def test_adversarial_training_makes_digits_robust() -> None:
    config = RECIPES["digits-robust"](0)
    splits = data.load(config.data)
    attack = AdversaryConfig("linf", epsilon=32.0, steps=20, step_size=4.0)
    accuracies = []
    for adversary in (AdversaryConfig(), dataclasses.replace(config.adversary, steps=4, step_size=12.0)):
        torch.manual_seed(0)
        network = pipeline.build_network(config, splits)
        objective = Objective(network, adversary=adversary)
        weights = train.endpoint(objective, splits.train, EndpointConfig(epochs=8), config.sgd, Silent())[8]
        statistics = batchnorm.recalibrate(network, weights, splits.train)
        accuracies.append(accuracy_under_attack(network, weights, statistics, splits.calibration, attack))
    standard, robust = accuracies
    assert robust > standard + 0.25


class Killed(Silent):
    """A stage that ends the run in its third epoch."""

    def epoch(self, done: int, loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_killed_run_goes_on_with_the_random_starts_that_it_would_have_had(tmp_path: Path, norm: str) -> None:
    objective = Objective(batchnorm_network(), adversary=AdversaryConfig(norm, epsilon=0.3, steps=2, step_size=0.2))

    def weights(seed: int, stage: Silent, folder: str) -> Tensor:
        torch.manual_seed(seed)
        saved = Checkpoints(tmp_path / folder, {}, every_s=0.0).stage("endpoint-0")
        sgd, config = SgdConfig(batch_size=8), EndpointConfig(epochs=4)
        return train.endpoint(objective, random_split(24), config, sgd, stage, saved=saved)[4]

    whole = weights(0, Silent(), "whole")
    with pytest.raises(KeyboardInterrupt):
        weights(0, Killed(), "killed")
    assert torch.equal(weights(7, Silent(), "killed"), whole)
    assert not torch.equal(weights(7, Silent(), "another"), whole)


def test_sse_fge_and_the_curve_train_with_an_adversary_and_export(tmp_path: Path) -> None:
    def hashes(folder: str, norm: str) -> dict[str, list[str]]:
        config = override(RECIPES["digits"](0), [*SHORT, f"adversary.norm={norm}"])
        outcome = pipeline.run(config, tmp_path / folder, QUIET)
        manifests = {name: validate(path).manifest for name, path in outcome.ensembles.items()}
        return {name: [entry.file.sha256 for entry in m.weight_sets] for name, m in manifests.items()}

    robust = hashes("robust", "linf")
    assert {name: len(sets) for name, sets in robust.items()} == {"sse": 2, "fge": 2, "curve": 3}
    plain = hashes("plain", "none")
    for method, sets in robust.items():
        assert not set(sets) & set(plain[method])


def test_tokens_are_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "tokens.py").write_text(
        "import torch\n"
        "def load():\n"
        "    return {'train_inputs': torch.arange(400).view(100, 4) % 7, 'train_targets': torch.arange(100) % 2}\n"
    )
    sets = [f"data.source={tmp_path}/tokens.py:load", "data.train_rows=60", "data.calibration_rows=20"]
    config = override(RECIPES["digits"](0), [*SHORT, *sets, "sgd.batch_size=30", "adversary.norm=linf"])
    with pytest.raises(InvalidConfig, match=r"adversary\.norm is 'linf'; .* has tokens, expected images or floats"):
        pipeline.run(config, tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
