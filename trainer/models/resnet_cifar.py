"""ResNet for 32×32 images with two 3×3 convolutions a block: He et al. 2016, "Deep residual learning", section 4.2.

Depth 6n + 2; the paper's curve experiments use 158. Where the shape changes, the shortcut takes every second pixel and
fills up with zero channels: it has no parameters (the article's option A).
"""

import torch
from torch import Tensor, nn

from trainer.errors import InvalidConfig


def resnet_cifar(classes: int, in_channels: int = 3, depth: int = 158) -> nn.Module:
    """Takes [B, in_channels, H, W] with H and W at least 4; gives logits [B, classes]."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise InvalidConfig(f"depth is {depth}; expected 6n + 2 (8, 14, 20, …, 158)")
    channels = 16
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]
    for stage, planes in enumerate((16, 32, 64)):
        for block in range(blocks):
            layers.append(PlainBlock(channels, planes, 2 if stage > 0 and block == 0 else 1))
            channels = planes
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class PlainBlock(nn.Module):
    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, planes - in_channels
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, planes, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Conv2d(planes, planes, 3, padding=1, bias=False),
            nn.BatchNorm2d(planes),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or self.new_channels:
            shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return torch.relu(self.residual(x) + shortcut)
