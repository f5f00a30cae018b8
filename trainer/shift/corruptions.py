"""Pictures as they might arrive: common corruptions, each at five severities.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations". The
strengths of noise, Gaussian and zoom blur, brightness, contrast and JPEG are those of their CIFAR-10-C. Motion blur,
elastic deformation, pixelation and saturation are made otherwise, rotation and translation are added; what needs
pictures or libraries of its own (defocus, glass, snow, frost, fog) is left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from trainer.seeding import seed_stage

SEVERITIES = 5
CHUNK_ROWS = 250  # in float32 at once
# A pixel of a small picture is no shorter, as far as blur goes: a stroke of a digit is as wide in 8 pixels as in 28.
REFERENCE_SIDE = 32
MOTION_STEPS, ZOOM_STEPS = 9, 6  # pictures that are averaged
ELASTIC_GRID = 5  # displacements along each side, smooth in between


@dataclass(frozen=True)
class Kind:
    name: str
    strengths: tuple[float, float, float, float, float]  # by severity
    meaning: str  # of a strength
    # Pictures [B, C, H, W] in [0, 1] and a strength; may leave [0, 1]. Draws from torch's global generator.
    apply: Callable[[Tensor, float], Tensor]
    coloured: bool = False  # does nothing to grey pictures


def applicable(inputs: Tensor) -> tuple[list[Kind], dict[str, str]]:
    """The kinds for such rows, and by name why others are left out."""
    if inputs.dtype != torch.uint8 or inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
        rows = f"{inputs.dtype} {list(inputs.shape[1:])}"
        return [], {"corruptions": f"the rows are {rows}; they are made of pictures, torch.uint8 [1 or 3, H, W]"}
    grey = inputs.shape[1] == 1
    absent = {kind.name: "the pictures are grey" for kind in KINDS if kind.coloured and grey}
    return [kind for kind in KINDS if kind.name not in absent], absent


@torch.no_grad()
def corrupt(inputs: Tensor, kind: Kind, severity: int, seed: int) -> Tensor:
    """uint8 [N, C, H, W] of `inputs`' size. severity: 1 to SEVERITIES; all draw the same numbers."""
    strength = kind.strengths[severity - 1]
    with torch.random.fork_rng(devices=[]):
        seed_stage(seed, "corruption", kind.name)
        return torch.cat([_to_bytes(kind.apply(part / 255, strength)) for part in inputs.split(CHUNK_ROWS)])


def _to_bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _gaussian_noise(images: Tensor, deviation: float) -> Tensor:
    noisy: Tensor = transforms.gaussian_noise(images, sigma=deviation)
    return noisy


def _shot_noise(images: Tensor, photons: float) -> Tensor:
    return torch.poisson(images * photons) / photons


def _impulse_noise(images: Tensor, share: float) -> Tensor:
    drawn = torch.rand_like(images)
    return images.masked_fill(drawn < share / 2, 0.0).masked_fill(drawn > 1 - share / 2, 1.0)


def _gaussian_blur(images: Tensor, deviation: float) -> Tensor:
    deviation *= _pixels(images)
    radius = min(math.ceil(3 * deviation), min(images.shape[-2:]) - 1)  # what reflection at the edge allows
    blurred: Tensor = transforms.gaussian_blur(images, [2 * radius + 1] * 2, [deviation] * 2)
    return blurred


def _motion_blur(images: Tensor, length: float) -> Tensor:
    """Along a line, in a direction of each picture's own."""
    direction_B2 = _directions(len(images))
    height, width = images.shape[-2:]
    along_B2 = direction_B2 * length * _pixels(images) * 2 / torch.tensor([width, height])
    steps = torch.linspace(-0.5, 0.5, MOTION_STEPS).tolist()
    return torch.stack([_warped(images, torch.eye(2), step * along_B2) for step in steps]).mean(0)


def _zoom_blur(images: Tensor, greatest: float) -> Tensor:
    zooms = torch.linspace(1.0, greatest, ZOOM_STEPS).tolist()
    return torch.stack([_warped(images, torch.eye(2) / zoom) for zoom in zooms]).mean(0)


def _brightness(images: Tensor, added: float) -> Tensor:
    return images + added


def _contrast(images: Tensor, factor: float) -> Tensor:
    pale: Tensor = transforms.adjust_contrast(images, factor)
    return pale


def _saturation(images: Tensor, factor: float) -> Tensor:
    pale: Tensor = transforms.adjust_saturation(images, factor)
    return pale


def _jpeg(images: Tensor, quality: float) -> Tensor:
    """By Pillow: torchvision's own codec is to be removed."""
    shrunk = []
    for image in _to_bytes(images):
        file = BytesIO()
        Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()).save(file, "JPEG", quality=int(quality))
        shrunk.append(torch.from_numpy(np.array(Image.open(file))).view(*image.shape[1:], -1).movedim(-1, 0))
    return torch.stack(shrunk) / 255


def _pixelate(images: Tensor, share: float) -> Tensor:
    sides = list(images.shape[-2:])
    small = transforms.resize(images, [max(1, int(side * share)) for side in sides], antialias=True)
    coarse: Tensor = transforms.resize(small, sides, InterpolationMode.NEAREST_EXACT)
    return coarse


def _elastic(images: Tensor, share: float) -> Tensor:
    """A smooth random displacement of each picture's own."""
    coarse = torch.randn(len(images), 2, ELASTIC_GRID, ELASTIC_GRID)
    moved_B2HW = interpolate(coarse, images.shape[-2:], mode="bicubic", align_corners=True)
    moved_B2HW /= moved_B2HW.square().sum(1, keepdim=True).mean((2, 3), keepdim=True).sqrt()
    return _warped(images, torch.eye(2), 2 * share * moved_B2HW.permute(0, 2, 3, 1))


def _rotation(images: Tensor, degrees: float) -> Tensor:
    """To either side."""
    height, width = images.shape[-2:]
    angle_B = math.radians(degrees) * (2.0 * torch.randint(2, (len(images),)) - 1)
    cos, sin = angle_B.cos(), angle_B.sin()
    matrix_B22 = torch.stack([cos, -sin * height / width, sin * width / height, cos], 1).view(-1, 2, 2)
    return _warped(images, matrix_B22)


def _translation(images: Tensor, share: float) -> Tensor:
    """In a direction of each picture's own."""
    return _warped(images, torch.eye(2), 2 * share * _directions(len(images)))


def _pixels(images: Tensor) -> float:
    """What counts as a pixel in pictures of this size."""
    return max(1.0, min(images.shape[-2:]) / REFERENCE_SIDE)


def _directions(count: int) -> Tensor:
    """[B, 2] of length 1."""
    angle_B = 2 * math.pi * torch.rand(count)
    return torch.stack([angle_B.cos(), angle_B.sin()], 1)


def _warped(images: Tensor, matrix: Tensor, offset: Tensor | None = None) -> Tensor:
    """Each pixel from elsewhere, x → matrix · x + offset, bilinearly; beyond the edge is what is at the edge.

    In torch's coordinates: the picture spans [−1, 1]². matrix [2, 2] or [B, 2, 2]; offset [B, 2], or [B, H, W, 2].
    """
    theta = torch.zeros(len(images), 2, 3)
    theta[:, :, :2] = matrix
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    if offset is not None:
        grid = grid + (offset if offset.dim() == 4 else offset[:, None, None])
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


KINDS = (
    Kind("gaussian noise", (0.04, 0.06, 0.08, 0.09, 0.10), "standard deviation", _gaussian_noise),
    Kind("shot noise", (500, 250, 100, 75, 50), "photons at white", _shot_noise),
    Kind("impulse noise", (0.01, 0.02, 0.03, 0.05, 0.07), "share of values set to black or white", _impulse_noise),
    Kind("gaussian blur", (0.4, 0.6, 0.7, 0.8, 1.0), "standard deviation, pixels", _gaussian_blur),
    Kind("motion blur", (1.0, 1.5, 2.0, 3.0, 4.0), "length, pixels", _motion_blur),
    Kind("zoom blur", (1.06, 1.11, 1.16, 1.21, 1.26), "greatest zoom", _zoom_blur),
    Kind("brightness", (0.05, 0.1, 0.15, 0.2, 0.3), "added", _brightness),
    Kind("contrast", (0.75, 0.5, 0.4, 0.3, 0.15), "share that is left", _contrast),
    Kind("saturation", (0.5, 0.35, 0.2, 0.1, 0.0), "share that is left", _saturation, coloured=True),
    Kind("jpeg", (80, 65, 58, 50, 40), "quality", _jpeg),
    Kind("pixelate", (0.8, 0.65, 0.5, 0.4, 0.3), "share of the pixels along a side", _pixelate),
    Kind("elastic", (0.015, 0.025, 0.035, 0.05, 0.065), "displacement (root mean square), share of a side", _elastic),
    Kind("rotation", (6, 12, 18, 24, 30), "degrees", _rotation),
    Kind("translation", (0.03, 0.06, 0.09, 0.12, 0.15), "share of a side", _translation),
)
