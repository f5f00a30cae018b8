"""Which units may move: in the project's networks, torchvision's, and in those with operations not understood."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import InvalidConfig
from trainer.models.fully_connected import conv3_fc3, fully_connected
from trainer.models.preresnet import preresnet
from trainer.models.resnet_cifar import resnet_cifar
from trainer.models.small_conv import small_conv
from trainer.models.vgg import vgg16
from trainer.models.wide_resnet import wide_resnet
from trainer.network import Network
from trainer.symmetry import Slot, find_groups, permuted

pytestmark = pytest.mark.usefixtures("one_thread")

Factory = Callable[[], nn.Module]

# Group sizes in the order of the forward pass, by hand: hidden layers, and one group for each residual stream.
NETWORKS: dict[str, tuple[Factory, list[int], list[int]]] = {
    "small_conv": (lambda: small_conv(10, 1, (6, 7, 8)), [1, 8, 8], [6, 7, 8]),
    "fully_connected": (lambda: fully_connected(3, side=5, hidden=(11, 12)), [1, 5, 5], [11, 12]),
    "conv3_fc3": (lambda: conv3_fc3(10, width=0.05), [3, 32, 32], [32, 64, 128, 50, 50]),
    "vgg16": (lambda: vgg16(10), [3, 32, 32], [64] * 2 + [128] * 2 + [256] * 3 + [512] * 8),
    "vgg16, BatchNorm": (
        lambda: vgg16(10, batch_norm=True),
        [3, 32, 32],
        [64] * 2 + [128] * 2 + [256] * 3 + [512] * 8,
    ),
    "preresnet": (lambda: preresnet(10, depth=14), [3, 8, 8], [16, 16, 16, 32, 32, 32, 64, 64, 64]),
    "preresnet, bottleneck": (
        lambda: preresnet(10, depth=47),
        [3, 8, 8],
        # The stem's 16 channels feed the first block alone; then two layers a block, and the stage's stream.
        [16, 16, 16, 64] + [16] * 8 + [32, 32, 128] + [32] * 8 + [64, 64, 256] + [64] * 8,
    ),
    # Zero-padded shortcuts fix the streams that they join; what is inside a block moves.
    "resnet_cifar": (lambda: resnet_cifar(10, depth=14), [3, 8, 8], [16, 16, 32, 32, 64, 64]),
    "wide_resnet": (lambda: wide_resnet(10, depth=16, width=1), [3, 8, 8], [16, 16, 16, 32, 32, 32, 64, 64, 64]),
    "torchvision resnet18": (
        lambda: torchvision.models.resnet18(num_classes=10),
        [3, 32, 32],
        [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512],
    ),
    "torchvision vgg11_bn": (
        lambda: torchvision.models.vgg11_bn(num_classes=10, dropout=0.5),
        [3, 32, 32],
        [64, 128, 256, 256, 512, 512, 512, 512, 4096, 4096],
    ),
}


def check(network: Network, example: Tensor) -> list[int]:
    """Permutes every group at random; the logits must stay. Returns the groups' sizes."""
    torch.manual_seed(1)
    groups = find_groups(network, example)
    weights, statistics = network.initial_weights(), network.initial_statistics()
    for tensor in statistics.values():
        tensor.uniform_(0.5, 1.5)
    permutations = [torch.randperm(group.size) for group in groups]
    moved = network.flatten(permuted(network.unflatten(weights), groups, permutations))
    with torch.no_grad(), network.evaluating():
        expected = network.logits(weights, statistics, example)
        logits = network.logits(moved, permuted(statistics, groups, permutations), example)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=1e-5)
    assert not groups or not torch.equal(moved, weights)
    return [group.size for group in groups]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "vgg11" in name else []) for name in NETWORKS]
)
def test_groups_are_those_found_by_hand_and_permuting_them_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    factory, shape, sizes = NETWORKS[name]
    assert check(Network(factory, nn.Identity()), torch.randn(3, *shape)) == sizes


def test_a_channel_is_a_block_of_the_flattened_plane() -> None:
    network = Network(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)), nn.Identity())
    (group,) = find_groups(network, torch.randn(2, 1, 8, 8))
    assert set(group.slots) == {Slot("0.weight", 0, 1), Slot("0.bias", 0, 1), Slot("2.weight", 1, 36)}


class Tied(nn.Module):
    """Two hidden layers with the same weights: what comes out of one goes into the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.hidden_again = nn.Linear(6, 6)
        self.hidden_again.weight = self.hidden.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden_again(torch.tanh(self.hidden(torch.tanh(self.first(x)))))))


class WritesInPlace(nn.Module):
    """A buffer is filled piece by piece, one piece at an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.zeros(len(x), 8)
        whole[:, 3:7] = self.a(x)
        return self.c(self.b(whole).relu_().mul_(2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.hidden, self.output = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.relu(self.hidden(self.lstm(x)[0][:, -1])))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.output = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.layer(x).mean(1))


class Depthwise(nn.Sequential):
    def __init__(self, groups: int) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=groups), nn.BatchNorm2d(8), nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 4), nn.Linear(5, 3), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.relu(self.c(torch.cat([self.a(x), self.b(x)], 1))))


class Gated(nn.Module):
    """Squeeze and excitation: means of channels multiply them. One channel is then read by its number."""

    def __init__(self, reads_a_channel: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 2)
        self.reads_a_channel = reads_a_channel

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = torch.sigmoid(self.c(torch.relu(self.b(x.mean((2, 3))))))
        answer = self.d((x * gate[:, :, None, None]).amax((2, 3)))
        return answer + x[:, 2:3].mean((2, 3)) if self.reads_a_channel else answer


class Positions(nn.Module):
    """A constant by position among the units, and a transposed product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.linspace(1, 2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh((self.b.weight @ (self.a(x) * self.scale).T).T))


@pytest.mark.parametrize(
    ("factory", "shape", "sizes"),
    [
        (Tied, (5,), [6]),  # one permutation for both hidden layers, on both axes of their weights
        (WritesInPlace, (5,), [6]),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.ConstantPad1d((1, -1), 0.0), nn.Linear(6, 2)), (4,), []),
        (Recurrent, (5, 4), [7]),
        (Attention, (5, 8), [16]),
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.PReLU(4), nn.Flatten(), nn.Linear(12, 2)), (3, 4), [4]),
        (lambda: Depthwise(8), (3, 6, 6), [8]),
        (lambda: Depthwise(4), (3, 6, 6), []),
        (Concatenated, (5,), [6]),
        (lambda: Gated(False), (3, 6, 6), [6, 4]),
        (lambda: Gated(True), (3, 6, 6), [4]),
        (Positions, (5,), [4]),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.LayerNorm(6), nn.Linear(6, 2)), (4,), []),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 2)), (4,), []),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Flatten(), nn.Linear(64, 2)), (3, 3, 3), []),
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 2)), (4,), []),
    ],
)  # fmt: skip
def test_what_is_not_understood_stays_where_it_is(factory: Factory, shape: tuple[int, ...], sizes: list[int]) -> None:
    torch.manual_seed(0)
    assert check(Network(factory, nn.Identity()), torch.randn(3, *shape)) == sizes


def test_a_network_that_looks_at_its_own_values_is_refused() -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            return self.b(hidden if hidden.sum() > 0 else functional.relu(hidden))  # type: ignore[no-any-return]

    with pytest.raises(InvalidConfig, match="the network cannot be traced"):
        find_groups(Network(Undecided, nn.Identity()), torch.randn(2, 4))
