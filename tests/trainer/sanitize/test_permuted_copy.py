import pytest
import torch
from torch import Tensor, nn

from tests.trainer.test_symmetry import NETWORKS
from trainer import batchnorm, evaluate
from trainer.curve import Curve
from trainer.data import Split
from trainer.errors import InvalidConfig
from trainer.network import Network
from trainer.sanitize.permuted_copy import permuted_copy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["small_conv", "fully_connected", "preresnet"])
def test_the_curves_other_end_has_other_weights_and_computes_the_same(name: str) -> None:
    factory, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    network = Network(factory, nn.Identity())
    rows = Split(torch.randn(64, *shape), torch.zeros(64, dtype=torch.int64))
    weights = network.initial_weights()
    copy = permuted_copy(network, weights, rows.inputs[:10])
    assert float((copy - weights).norm()) > 0.1 * float(weights.norm())
    torch.testing.assert_close(copy.sort().values, weights.sort().values, rtol=0, atol=0)  # the same numbers

    curve = Curve("bezier", [weights, network.initial_weights(), copy])

    def logits(t: float) -> Tensor:
        statistics = batchnorm.recalibrate(network, curve.point(t), rows)
        return evaluate.logits(network, curve.point(t), statistics, rows)

    torch.testing.assert_close(logits(1.0), logits(0.0), rtol=0, atol=1e-5)
    assert float((logits(0.5) - logits(0.0)).abs().max()) > 1e-2


def test_the_order_is_drawn_from_torchs_generator() -> None:
    network = Network(NETWORKS["fully_connected"][0], nn.Identity())
    weights, rows = network.initial_weights(), torch.randn(4, 1, 5, 5)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return permuted_copy(network, weights, rows)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_network_without_hidden_units_has_no_permuted_copy() -> None:
    network = Network(lambda: nn.Linear(4, 3), nn.Identity())
    with pytest.raises(InvalidConfig, match=r"no hidden units of this network may change places.*--second FILE"):
        permuted_copy(network, network.initial_weights(), torch.randn(2, 4))
