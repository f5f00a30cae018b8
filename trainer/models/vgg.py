"""VGG-16 for 32×32 images: Simonyan and Zisserman 2014, as in the paper's experiments.

Thirteen 3×3 convolutions in five blocks, each halved by pooling; two hidden layers of 512 with dropout. Without
BatchNorm 15.3 million parameters for 100 classes.
"""

from torch import nn

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


def vgg16(classes: int, in_channels: int = 3, batch_norm: bool = False) -> nn.Module:
    """Takes [B, in_channels, 32, 32]; gives logits [B, classes]."""
    layers: list[nn.Module] = []
    channels = in_channels
    for width, convolutions in BLOCKS:
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(
        nn.Sequential(*layers),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, classes),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # He initialisation over the outputs: without BatchNorm the default does not train.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network
