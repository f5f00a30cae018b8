"""A 50-member curve ensemble stores its three control points, and serves."""

from pathlib import Path

import numpy as np
import pytest
import torch

from protos.validate import validate
from serving.client import Client
from tests.server_process import ServerProcess
from trainer import data, export, manifest, member, pipeline
from trainer.config import override
from trainer.curve import Curve
from trainer.recipes import RECIPES


def size_bytes(directory: Path) -> int:
    """Without the statistics, which every member has of its own."""
    return sum(
        path.stat().st_size for path in directory.rglob("*") if path.is_file() and path.parent.name != "statistics"
    )


@pytest.mark.slow
def test_fifty_curve_members_weigh_at_most_3_3_times_one_and_serve(tmp_path: Path) -> None:
    config = override(RECIPES["digits"](0), ['model.options={"channels": [32, 64, 128]}'])
    splits = data.load(config.data)
    network = pipeline.build_network(config, splits)
    graph = export.graph(network, splits.train.inputs)
    torch.manual_seed(0)
    ends = network.initial_weights(), network.initial_weights()
    curve = Curve("bezier", [ends[0], network.initial_weights(), ends[1]])
    fifty = member.curve(curve, member.curve_points(network, splits, curve, 50), splits)
    one = member.endpoints(network, splits, "one", [member.End(ends[0], 0)])
    origin = manifest.provenance(config, splits)
    for name, ensemble in (("fifty", fifty), ("one", one)):
        manifest.write(tmp_path / name, ensemble, {}, network, graph, splits, config, origin)

    assert len(validate(tmp_path / "fifty").manifest.members) == 50
    assert len(list((tmp_path / "fifty/weights").iterdir())) == 3
    assert size_bytes(tmp_path / "fifty") <= 3.3 * size_bytes(tmp_path / "one")
    inputs = splits.test.inputs[:20].numpy()
    for memory in ("fast", "compact"):
        with (
            ServerProcess(tmp_path / "fifty", "--memory", memory, "--max-batch-rows", "20") as server,
            Client(server.grpc, config.name) as client,
        ):
            answer = client.predict(inputs)
        assert answer.members_run == 50
        np.testing.assert_allclose(answer.probs, fifty.probs("test")[:20].numpy(), atol=1e-5)
