"""Networks at any t are those that the server makes, and every row's draw is uniform."""

import dataclasses

import numpy as np
import pytest
import torch

from serving.networks.combined import flatten
from serving.networks.curve import CurveGrid
from trainer import finished_run
from trainer.attack.curve_points import CurvePoints, random_point
from trainer.errors import InvalidConfig
from trainer.finished_run import FinishedRun
from trainer.pipeline import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(small_run: Outcome) -> FinishedRun:
    return finished_run.load(small_run.report.parent)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.25, 0.61, 1.0])
def test_a_network_at_any_t_is_the_one_that_the_server_makes(run: FinishedRun, t: float) -> None:
    stored = run.ensembles["curve"]
    ours, theirs = CurvePoints(run).at(t), CurveGrid(stored).at(t)
    weights = sum(c * run.weights("curve", name) for name, c in theirs.coefficients.items())
    torch.testing.assert_close(ours.weights, weights)
    assert ours.temperature == pytest.approx(theirs.temperature)
    flat = np.concatenate([ours.statistics[name].flatten() for name in stored.manifest.statistic_names])
    np.testing.assert_allclose(flat, theirs.statistics, rtol=1e-5)
    assert flatten(stored, stored.manifest.members[0]).shape == flat.shape


def test_a_row_meets_a_new_network_at_each_call_uniformly_along_the_curve(run: FinishedRun) -> None:
    torch.manual_seed(0)
    answer, points, row = random_point(run), CurvePoints(run), run.splits.test.inputs[:1]
    drawn = torch.cat([answer(row) for _ in range(200)])
    assert len(drawn.unique(dim=0)) == 200
    along = []
    for t in torch.linspace(0.0025, 0.9975, 200).tolist():
        point = points.at(t)
        with torch.no_grad(), run.network.evaluating():
            logits = run.network.logits(point.weights, point.statistics, row)
        along.append(torch.softmax(logits / point.temperature, 1))
    found, exact = drawn.double(), torch.cat(along).double()
    assert (found.mean(0) - exact.mean(0)).abs().sub(4 * exact.std(0) / 200**0.5).max() <= 1e-6
    assert float(found.amax(0).sub(exact.amax(0)).max()) <= 1e-3  # nothing from outside of the curve


def test_a_run_without_the_curves_ends_is_refused(run: FinishedRun) -> None:
    with pytest.raises(InvalidConfig, match="has no curve; it has fge"):
        CurvePoints(dataclasses.replace(run, ensembles={"fge": run.ensembles["fge"]}))
