"""Preactivation ResNet of any depth for 32×32 images: He et al. 2016, "Identity mappings in deep residual networks".

Three stages of 16, 32 and 64 channels. Below depth 44 a block has two 3×3 convolutions and the depth is 6n + 2; from
44 on it is a bottleneck with four times the channels at its ends and the depth is 9n + 2: 1.17 million parameters at
depth 110 and 1.73 million at 164, for 100 classes.
"""

from torch import Tensor, nn

from trainer.errors import InvalidConfig

BOTTLENECK_FROM = 44


def preresnet(classes: int, in_channels: int = 3, depth: int = 20, width: int = 1) -> nn.Module:
    """Takes [B, in_channels, H, W] with H and W at least 4; gives logits [B, classes]. `width` scales the channels."""
    convolutions = 3 if depth >= BOTTLENECK_FROM else 2
    blocks, rest = divmod(depth - 2, 3 * convolutions)
    if rest or blocks < 1:
        raise InvalidConfig(
            f"depth is {depth}; expected 6n + 2 below {BOTTLENECK_FROM} (8, 14, 20, …), "
            f"9n + 2 from there (47, 56, 110, 164, …)"
        )
    return PreResNet(classes, in_channels, blocks, bottleneck=convolutions == 3, width=width)


class PreResNet(nn.Module):
    def __init__(self, classes: int, in_channels: int, blocks: int, bottleneck: bool, width: int) -> None:
        super().__init__()
        expansion = 4 if bottleneck else 1
        channels = 16 * width
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for stage, planes in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(Block(channels, planes, planes * expansion, stride, bottleneck))
                channels = planes * expansion
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(channels, classes),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """BatchNorm and ReLU before each convolution; the shortcut is the identity, or a 1×1 convolution of the input."""

    def __init__(self, in_channels: int, planes: int, out_channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            kernels = [(in_channels, planes, 1, 1), (planes, planes, 3, stride), (planes, out_channels, 1, 1)]
        else:
            kernels = [(in_channels, planes, 3, stride), (planes, out_channels, 3, 1)]
        layers: list[nn.Module] = []
        for before, after, kernel, step in kernels:
            layers += [
                nn.BatchNorm2d(before),
                nn.ReLU(),
                nn.Conv2d(before, after, kernel, stride=step, padding=kernel // 2, bias=False),
            ]
        self.residual = nn.Sequential(*layers)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)  # type: ignore[no-any-return]
