"""A small convolutional network with BatchNorm, for small images such as 8×8 digits."""

from collections.abc import Sequence

from torch import nn


def small_conv(classes: int, in_channels: int, channels: Sequence[int] = (16, 32, 32)) -> nn.Module:
    """Three 3×3 convolutions with BatchNorm and ReLU, halved once, averaged over the plane, one linear layer.

    Takes [B, in_channels, H, W] with H and W at least 2; gives logits [B, classes].
    """
    first, second, third = channels
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(second, third, 3, padding=1, bias=False),
        nn.BatchNorm2d(third),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, classes),
    )
