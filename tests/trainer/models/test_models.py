"""The networks of the paper's experiments: their sizes, shapes, and that any of them becomes a graph of members."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trainer import export
from trainer.errors import InvalidConfig
from trainer.models.fully_connected import conv3_fc3, fully_connected
from trainer.models.preresnet import preresnet
from trainer.models.resnet_cifar import resnet_cifar
from trainer.models.vgg import vgg16
from trainer.models.wide_resnet import wide_resnet
from trainer.network import Network


@pytest.mark.parametrize(
    ("network", "millions"),
    [
        # The sizes that the paper's notes and the articles give, rounded as there.
        (lambda: preresnet(100, depth=110), "1.17"),
        (lambda: preresnet(100, depth=164), "1.73"),
        (lambda: wide_resnet(100, depth=28, width=10), "36.54"),
        (lambda: resnet_cifar(10, depth=56), "0.85"),  # He et al. 2015, table 6
        (lambda: resnet_cifar(10, depth=110), "1.73"),
        (lambda: preresnet(10, depth=20), "0.27"),
    ],
)
def test_sizes_are_the_articles(network: Callable[[], nn.Module], millions: str) -> None:
    size = sum(parameter.numel() for parameter in network().parameters()) / 1e6
    assert f"{size:.2f}" == millions


def test_sizes_of_fully_connected_layers_equal_a_calculation_by_hand() -> None:
    assert sum(p.numel() for p in fully_connected(10).parameters()) == 784 * 1000 + 1000 + 1001 * 1000 + 1001 * 10
    wide, narrow = (sum(p.numel() for p in conv3_fc3(10, width=k).parameters()) for k in (1.0, 0.3))
    hand = [1152 * h + h + h * h + h + h * 10 + 10 for h in (1000, 300)]
    assert wide - narrow == hand[0] - hand[1]
    convolutions = sum(p.numel() for p in vgg16(100).parameters() if p.dim() == 4)
    assert convolutions == 9 * sum(
        a * b for a, b in zip(
            (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
            (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), strict=True,
        )
    )  # fmt: skip


SMALL: list[tuple[Callable[..., nn.Module], dict[str, Any], tuple[int, ...]]] = [
    (vgg16, {}, (3, 32, 32)),
    (vgg16, {"batch_norm": True}, (3, 32, 32)),
    (preresnet, {"depth": 8}, (3, 32, 32)),
    (preresnet, {"depth": 47}, (3, 16, 16)),
    (wide_resnet, {"depth": 10, "width": 1}, (3, 32, 32)),
    (resnet_cifar, {"depth": 8}, (3, 32, 32)),
    (fully_connected, {}, (1, 28, 28)),
    (conv3_fc3, {"width": 0.1}, (3, 32, 32)),
]


@pytest.mark.parametrize(("factory", "options", "shape"), SMALL, ids=[f"{f.__name__}-{o}" for f, o, _ in SMALL])
def test_every_network_becomes_a_graph_in_which_members_replace_each_other(
    factory: Callable[..., nn.Module], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    network = Network(lambda: factory(classes=7, in_channels=shape[0], **options), nn.Identity())
    graph = export.graph(network, torch.randn(3, *shape))  # tries other weights itself
    parameters = {name for name, _ in network.module.named_parameters()}
    assert parameters <= graph.initializers.keys()


@pytest.mark.parametrize(
    ("factory", "depth"), [(preresnet, 21), (preresnet, 2), (preresnet, 50), (wide_resnet, 27), (resnet_cifar, 157)]
)
def test_a_depth_that_cannot_be_is_refused(factory: Callable[..., nn.Module], depth: int) -> None:
    with pytest.raises(InvalidConfig, match=f"depth is {depth}; expected"):
        factory(10, depth=depth)
