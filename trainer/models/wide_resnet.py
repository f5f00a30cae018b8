"""Wide ResNet for 32×32 images: Zagoruyko and Komodakis 2016. Depth 28 and width 10: 36.5 million parameters."""

from torch import Tensor, nn

from trainer.errors import InvalidConfig


def wide_resnet(
    classes: int, in_channels: int = 3, depth: int = 28, width: int = 10, dropout: float = 0.0
) -> nn.Module:
    """Takes [B, in_channels, H, W] with H and W at least 4; gives logits [B, classes]."""
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise InvalidConfig(f"depth is {depth}; expected 6n + 4 (10, 16, 22, 28, …)")
    channels = 16
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
    for stage in range(3):
        planes = 16 * 2**stage * width
        for block in range(blocks):
            layers.append(WideBlock(channels, planes, 2 if stage > 0 and block == 0 else 1, dropout))
            channels = planes
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(channels, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class WideBlock(nn.Module):
    """Where the shape changes, shortcut and residual both start from the activated input."""

    def __init__(self, in_channels: int, planes: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, planes, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(planes, planes, 3, padding=1, bias=False),
        )
        self.shortcut = None
        if stride != 1 or in_channels != planes:
            self.shortcut = nn.Conv2d(in_channels, planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.residual(activated) + shortcut  # type: ignore[no-any-return]
