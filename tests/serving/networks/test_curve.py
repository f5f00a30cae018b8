"""Policy `curve`: every row a network of its own, at a point of the curve that nobody learns."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import prometheus_client
import pytest
from scipy.stats import kstest

from protos import open_inference_grpc_pb2 as oip
from protos.ensemble_pb2 import BEZIER, POLYGONAL_CHAIN, Curve
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from protos.stored_ensemble import StoredEnsemble
from serving import ensemble as ensembles
from serving import policy
from serving.batcher import Work
from serving.client import Client
from serving.errors import StartupError
from serving.networks.curve import CurveGrid, NoCurve
from serving.networks.engines.engine import Engine
from serving.networks.engines.onnx_cpu import OnnxCpu
from serving.policy import Choice, Policy
from serving.prediction import Prediction
from serving.telemetry.metrics import Metrics
from tests import tiny_ensemble
from tests.server_process import ServerProcess
from tests.serving.networks.engines.test_onnx_cuda import on_cpu

TS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROWS = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


def answer(stored: StoredEnsemble, engine: Engine, *choices: tuple[int, Choice]) -> list[Prediction]:
    """What a batch of requests for so many of the rows each is answered with."""
    ensemble = ensembles.load(stored, engine, Metrics())
    ends = np.cumsum([rows for rows, _ in choices]).tolist()
    batch = [
        Work(ROWS[end - rows : end], choice, None, None)  # type: ignore[arg-type]
        for end, (rows, choice) in zip(ends, choices, strict=True)
    ]
    answers = engine.run(ensemble.execute(batch))
    assert all(isinstance(each, Prediction) for each in answers)
    return answers  # type: ignore[return-value]


@pytest.mark.parametrize(("kind", "bends"), [(BEZIER, 0), (BEZIER, 1), (BEZIER, 3), (POLYGONAL_CHAIN, 2)])
@pytest.mark.parametrize("engine", [OnnxCpu(1), OnnxCpu(2), on_cpu(200)], ids=["cpu-1", "cpu-2", "bound"])
def test_answers_at_drawn_points_equal_the_definition(
    kind: Curve, bends: int, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tiny_ensemble.write_curve(tmp_path / "curve", TS, kind, bends)
    # Grid points and both ends among them.
    ts = [*TS, *np.random.default_rng(1).random(195).tolist()]
    monkeypatch.setattr(ensembles, "draw_points", lambda rows: ts[:rows])
    (found,) = answer(stored, engine, (200, Choice(Policy.CURVE)))
    expected = [
        tiny_ensemble.point_probs(ROWS[b : b + 1], t, TS, kind, bends)[0] for b, t in enumerate(ts)
    ]  # fmt: skip
    np.testing.assert_allclose(found.probs_BC, expected, atol=1e-6)
    np.testing.assert_allclose(found.mutual_information_B, 0, atol=1e-12)
    np.testing.assert_array_equal(found.member_probs_BMC[:, 0], found.probs_BC)


def test_a_drawn_row_shares_its_batch_with_requests_of_other_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tiny_ensemble.write_curve(tmp_path / "curve", TS)
    monkeypatch.setattr(ensembles, "draw_points", lambda rows: [0.3, 0.9][:rows])
    choices = (3, Choice(Policy.MEAN)), (2, Choice(Policy.CURVE)), (4, Choice(Policy.MEMBERS, (2, 0)))
    together = answer(stored, OnnxCpu(2), *choices)
    expected = [tiny_ensemble.point_probs(ROWS[3 + b : 4 + b], t, TS)[0] for b, t in enumerate([0.3, 0.9])]
    np.testing.assert_allclose(together[1].probs_BC, expected, atol=1e-6)
    alone = answer(stored, OnnxCpu(2), (3, Choice(Policy.MEAN)))
    np.testing.assert_allclose(together[0].probs_BC, alone[0].probs_BC, atol=1e-6)
    at_grid = [np.stack([tiny_ensemble.point_probs(ROWS[5:9], t, TS) for t in (0.5, 0.0)], 1)]
    np.testing.assert_allclose(together[2].member_probs_BMC, at_grid[0], atol=1e-6)


def test_draws_are_uniform_and_independent_from_row_to_row() -> None:
    ts = np.array(policy.draw_points(20_000))
    assert ((ts >= 0) & (ts < 1)).all()
    assert len(np.unique(ts)) == 20_000  # continuous
    assert kstest(ts, "uniform").pvalue > 1e-6
    assert kstest((ts[1:] - ts[:-1]) % 1.0, "uniform").pvalue > 1e-6


def test_statistics_and_temperature_are_those_of_a_grid_point_exactly_there(tmp_path: Path) -> None:
    stored = tiny_ensemble.write_curve(tmp_path / "curve", TS)
    grid = CurveGrid(stored)
    for i, t in enumerate(TS):
        point = grid.at(t)
        expected = tiny_ensemble.statistics(i)
        np.testing.assert_array_equal(
            point.statistics, np.concatenate([expected[n] for n in stored.manifest.statistic_names])
        )
        assert point.temperature == pytest.approx(1.0 + 0.1 * i)


def test_members_are_a_grid_in_whatever_order_they_are_served(tmp_path: Path) -> None:
    shuffled = (0.5, 1.0, 0.0)
    point = CurveGrid(tiny_ensemble.write_curve(tmp_path / "curve", shuffled)).at(0.75)
    # Halfway between the first two members of the manifest.
    halfway = sum(tiny_ensemble.statistics(i)["bn.running_mean"] for i in (0, 1)) / 2
    np.testing.assert_allclose(point.statistics[:4], halfway, rtol=1e-6)


def test_ensembles_that_are_no_curve_say_why(tmp_path: Path) -> None:
    ensembles_and_reasons = [
        (tiny_ensemble.write(tmp_path / "one", members=1), "'tiny' is no curve: none of its members is a point of one"),
        (tiny_ensemble.write(tmp_path / "mixed"), "reach from t = 0.25 to 0.25; expected 0 to 1"),
        (tiny_ensemble.write_curve(tmp_path / "short", (0.0, 0.5)), "reach from t = 0 to 0.5; expected 0 to 1"),
        (tiny_ensemble.write_curve(tmp_path / "twice", (0.0, 0.5, 0.5, 1.0)), "two members of 'curve' have the same t"),
    ]
    for stored, reason in ensembles_and_reasons:
        with pytest.raises(NoCurve, match=re.escape(reason)):
            CurveGrid(stored)
        with pytest.raises(StartupError, match=f"--policy curve: .*{re.escape(reason)}"):
            ensembles.load(stored, OnnxCpu(1), Metrics(), forced_policy=Policy.CURVE)


def test_members_of_two_curves_are_no_curve(tmp_path: Path) -> None:
    stored = tiny_ensemble.write_curve(tmp_path / "curve", TS)
    stored.manifest.members[1].curve_point.curve = POLYGONAL_CHAIN
    with pytest.raises(NoCurve, match="lie on 2 curves; expected one"):
        CurveGrid(stored)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("curve") / "curve"
    tiny_ensemble.write_curve(directory, TS)
    return directory


@pytest.fixture(scope="module")
def forced(directory: Path) -> Iterator[ServerProcess]:
    with ServerProcess(directory, "--policy", "curve", "--max-batch-rows", "300") as server:
        yield server


def test_every_row_of_a_request_gets_a_network_of_its_own(directory: Path) -> None:
    with ServerProcess(directory, "--max-batch-rows", "300") as server, Client(server.grpc, "curve") as client:
        rows = np.repeat(ROWS[:1], 300, axis=0)
        drawn = client.predict(rows, policy="curve")
        mean = client.predict(rows)
    assert (drawn.policy, drawn.members_run) == ("curve", 1)
    assert len(np.unique(drawn.probs, axis=0)) > 290
    assert len(np.unique(mean.probs, axis=0)) == 1
    # Every answer is one of the curve's, to within the distance of two neighbours on a fine grid.
    fine = np.stack([tiny_ensemble.point_probs(ROWS[:1], t, TS)[0] for t in np.linspace(0, 1, 4001)])
    assert np.abs(drawn.probs[:, None] - fine[None]).max(-1).min(1).max() < 1e-3


@pytest.mark.parametrize("asked", [{"policy": "mean"}, {"policy": "random"}, {"members": [1]}])
def test_a_client_cannot_switch_it_off(forced: ServerProcess, asked: dict) -> None:  # type: ignore[type-arg]
    with Client(forced.grpc, "curve") as client:
        found = client.predict(np.repeat(ROWS[:1], 200, axis=0), **asked)
    assert found.policy == "curve"
    assert len(np.unique(found.probs, axis=0)) > 190


def test_no_log_line_and_no_metric_holds_t_or_what_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    t = 0.765432198765
    stored = tiny_ensemble.write_curve(tmp_path / "curve", TS)
    monkeypatch.setattr(ensembles, "draw_points", lambda rows: [t] * rows)
    metrics = Metrics()
    with caplog.at_level(logging.DEBUG):
        engine = OnnxCpu(1)
        ensemble = ensembles.load(stored, engine, metrics)
        (found,) = engine.run(ensemble.execute([Work(ROWS[:1], Choice(Policy.CURVE), None, None)]))  # type: ignore[arg-type]
    assert isinstance(found, Prediction)
    point = CurveGrid(stored).at(t)
    telling = [t, 1 - t, *point.coefficients.values(), point.temperature, *point.statistics.tolist()]
    said = caplog.text + prometheus_client.generate_latest(metrics.registry).decode()
    assert not [value for value in telling if f"{abs(value):.4f}"[:6] in said]


def test_an_answer_has_no_place_that_would_tell(forced: ServerProcess) -> None:
    with Client(forced.grpc, "curve") as client:
        found = client.predict(ROWS[:5], member_probs=True)
    assert found.member_probs is not None
    assert found.member_probs.shape == (5, 1, 3)
    np.testing.assert_array_equal(found.member_probs[:, 0], found.probs)
    with grpc.insecure_channel(forced.grpc) as channel:
        request = oip.ModelInferRequest(model_name="curve", raw_input_contents=[ROWS[:5].astype("<f4").tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=[5, 4])
        response = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert set(response.parameters) == {"policy", "members_run"}


def test_an_ensemble_that_is_no_curve_refuses_the_policy_and_says_why(tiny_server: ServerProcess) -> None:
    with Client(tiny_server.grpc, "tiny") as client, pytest.raises(grpc.RpcError) as refused:
        client.predict(ROWS[:1], policy="curve")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        "policy 'curve': the members of 'tiny' reach from t = 0.25 to 0.25; expected 0 to 1" in refused.value.details()
    )


def test_a_server_that_draws_members_does_not_draw_from_the_curve(directory: Path) -> None:
    with ServerProcess(directory, "--policy", "random") as server, Client(server.grpc, "curve") as client:
        assert client.predict(ROWS[:1], policy="curve").policy == "random"
