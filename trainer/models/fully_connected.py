"""The paper's networks with fully connected layers: FC on MNIST, and 3conv3fc with its width factor (section 4.2).

The paper does not give FC's sizes: two hidden layers of 1,000 here.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def fully_connected(
    classes: int, in_channels: int = 1, side: int = 28, hidden: Sequence[int] = (1000, 1000)
) -> nn.Module:
    """Takes [B, in_channels, side, side]; gives logits [B, classes]."""
    sizes = [in_channels * side * side, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def conv3_fc3(classes: int, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Three 5×5 convolutions of 32, 64 and 128 channels, three fully connected layers of 1000 · width.

    Takes [B, in_channels, 32, 32]; gives logits [B, classes]. width: K, in the paper 0.3, 0.5, 0.8 and 1.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for planes in (32, 64, 128):
        layers += [nn.Conv2d(channels, planes, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2)]
        channels = planes
    hidden = round(1000 * width)
    return nn.Sequential(
        *layers, nn.Flatten(),
        nn.Linear(128 * 3 * 3, hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, classes),
    )  # fmt: skip
