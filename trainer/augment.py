"""Random changes of training images, as tensor operations on a batch of raw pixels, wherever it lies."""

import torch
from torch import Tensor

PADDING = 4


def flip_and_crop(images: Tensor) -> Tensor:
    """Each image [C, H, W] of the batch flipped with probability 1/2, padded by 4 zero pixels and cropped at random.

    The paper's augmentation (He et al. 2016). Draws from torch's global CPU generator, so that a GPU sees the same.
    """
    count, channels, height, width = images.shape
    flipped = torch.rand(count) < 0.5
    offsets = torch.randint(0, 2 * PADDING + 1, (2, count, 1))
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.arange(width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    batch = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    rows, columns = rows.to(images.device), columns.to(images.device)
    return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


AUGMENTATIONS = {"none": None, "flip-crop": flip_and_crop}
