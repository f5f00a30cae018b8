"""Train, export, serve, ask: the answers over gRPC equal torch's own computation on every test row."""

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.stats import betabinom
from torch.func import functional_call

from protos.validate import validate
from serving.client import Client
from tests.server_process import ServerProcess
from trainer import standalone
from trainer.models.small_conv import small_conv
from trainer.pipeline import Outcome

ENSEMBLES = ["fge", "curve"]


def torch_answers(directory: Path, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`probs` [B, C] and `member_probs` [B, M, C] by functional_call, softmax, mean: from the stored files alone."""
    stored = validate(directory)
    module = small_conv(10, 1).eval()
    normalised = {name: stored.graph.initializers[f"preprocess.{name}"] for name in ("mean", "std")}
    from onnx import numpy_helper

    mean, std = (torch.from_numpy(numpy_helper.to_array(normalised[name]).copy()) for name in ("mean", "std"))
    x = (torch.from_numpy(inputs).float() - mean) / std
    member_probs = []
    with torch.no_grad():
        for member in stored.manifest.members:
            sets = [(term.coefficient, stored.weight_sets[term.weight_set]) for term in member.terms]
            names = list(sets[0][1])
            weights = {name: sum(c * torch.from_numpy(w[name]) for c, w in sets) for name in names}
            statistics = {n: torch.from_numpy(t) for n, t in stored.statistics[member.statistics].items()}
            logits = functional_call(module, weights | statistics, (x,))
            member_probs.append(torch.softmax(logits / member.temperature, 1))
    probs = torch.stack(member_probs).mean(0) ** (1 / stored.manifest.temperature)
    probs /= probs.sum(1, keepdim=True)
    return probs.numpy(), torch.stack(member_probs, 1).numpy()


@pytest.fixture(scope="module")
def inputs(small_run: Outcome) -> np.ndarray:
    with np.load(small_run.test_file) as file:
        return file["inputs"]


@pytest.mark.parametrize("name", ENSEMBLES)
def test_answers_over_grpc_equal_torch_on_every_test_row(small_run: Outcome, inputs: np.ndarray, name: str) -> None:
    directory = small_run.ensembles[name]
    probs, member_probs = torch_answers(directory, inputs)
    with ServerProcess(directory) as server, Client(server.grpc, "digits") as client:
        answer = client.predict(inputs, member_probs=True)
    assert len(answer.probs) == 1197
    np.testing.assert_allclose(answer.probs, probs, atol=1e-5)
    assert answer.member_probs is not None
    np.testing.assert_allclose(answer.member_probs, member_probs, atol=1e-5)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_standalone_files_in_stock_onnx_runtime_equal_torch(
    small_run: Outcome, inputs: np.ndarray, name: str, tmp_path: Path
) -> None:
    directory = small_run.ensembles[name]
    probs, member_probs = torch_answers(directory, inputs)
    paths = standalone.write(validate(directory), tmp_path / "out")
    found = []
    for path in paths:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found.append(session.run(["probs"], {"input": inputs})[0])
    np.testing.assert_allclose(found[-1], probs, atol=1e-5)
    np.testing.assert_allclose(np.stack(found[:-1], 1), member_probs, atol=1e-5)


@pytest.fixture(scope="module")
def targets(small_run: Outcome) -> np.ndarray:
    with np.load(small_run.test_file) as file:
        return file["targets"]


@pytest.mark.parametrize("name", ENSEMBLES)
def test_the_manifests_metrics_are_what_a_client_measures(
    small_run: Outcome, inputs: np.ndarray, targets: np.ndarray, name: str
) -> None:
    directory = small_run.ensembles[name]
    with ServerProcess(directory) as server, Client(server.grpc, "digits") as client:
        answers = {policy: client.predict(inputs, policy=policy) for policy in ("mean", "cascade")}
    metrics = {m.predictor: m for m in validate(directory).manifest.metrics if m.split == "test"}
    for predictor, policy in (("ensemble", "mean"), ("cascade", "cascade")):
        probs = answers[policy].probs
        assert metrics[predictor].error == pytest.approx((probs.argmax(1) != targets).mean(), abs=1e-9)
        nll = -np.log(probs[np.arange(len(targets)), targets]).mean()
        assert metrics[predictor].nll == pytest.approx(nll, abs=1e-5)


@pytest.mark.parametrize("policy", ["mean", "random", "curve", "cascade"])
def test_served_sets_hold_the_true_class_as_often_as_their_level(
    small_run: Outcome, inputs: np.ndarray, targets: np.ndarray, policy: str
) -> None:
    with ServerProcess(small_run.ensembles["curve"]) as server, Client(server.grpc, "digits") as client:
        for level in (0.9, 0.95, 0.98):
            answer = client.predict(inputs, policy=policy, also=["prediction_set"], level=level)
            held = int(answer.prediction_set[np.arange(len(targets)), targets].sum())
            # Given 300 calibration rows the coverage of new ones is Beta(k, 301 − k); the likeliest class adds to it.
            rank = math.ceil(301 * level)
            assert betabinom(len(targets), rank, 301 - rank).cdf(held) > 0.001
            assert (answer.prediction_set.sum(1) >= 1).all()
            assert answer.prediction_set.sum(1).mean() < 2
