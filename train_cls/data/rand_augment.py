"""RandAugment (Cubuk et al., arXiv:1909.13719) of a batch in memory, as tensor operations.

The 14 operations of the paper with the ranges of timm's increasing variant ("inc1"): an image gets
N of them, each drawn uniformly and applied at the same magnitude, with a random sign where an
operation has two directions. Colour operations compute what PIL's of the same name do; geometric
ones interpolate linearly and fill with grey.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

Images = Float[Tensor, "b c h w"]
"""In [0, 255]."""
Level = Float[Tensor, "b 1 1 1"]
"""Magnitude in [-1, 1], of random sign."""

ROTATION = 30.0
"""Max angle in degrees."""
SHEAR = 0.3
TRANSLATION = 0.45
"""Max displacement relative to the image's side."""
ENHANCEMENT = 0.9
"""Max distance from 1 of the factors of colour, contrast, brightness and sharpness."""
FILL = 128.0
LUMA = (0.299, 0.587, 0.114)


def rand_augment(
    images: UInt8[Tensor, "b c h w"], rng: torch.Generator, operations: int, magnitude: float
) -> UInt8[Tensor, "b c h w"]:
    """Apply `operations` random operations to every image.

    Args:
        rng: On the CPU.
        magnitude: From 0, where most operations do nothing, to 10.
    """
    for _ in range(operations):
        chosen = torch.randint(len(OPERATIONS), (len(images),), generator=rng)
        signs = torch.randint(0, 2, (len(images),), generator=rng) * 2.0 - 1
        changed = images.clone()
        for number, operation in enumerate(OPERATIONS):
            which = (chosen == number).nonzero().flatten()
            if len(which) and operation is not identity:
                level = (signs[which] * magnitude / 10).view(-1, 1, 1, 1).to(images.device)
                which = which.to(images.device)
                result = operation(images[which].float(), level)
                changed[which] = result.round().clamp(0, 255).to(torch.uint8)
        images = changed
    return images


def identity(images: Images, level: Level) -> Images:
    return images


def autocontrast(images: Images, level: Level) -> Images:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = ((images - low) * 255 / (high - low).clamp(min=1)).floor()
    return torch.where(high > low, stretched, images)


def equalize(images: Images, level: Level) -> Images:
    """Flatten each channel's histogram, by PIL's integer arithmetic."""
    values = images.long().flatten(2)  # b c n
    counts = values.new_zeros(*values.shape[:2], 256)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    flat = torch.where(step > 0, table.gather(2, values), values)
    return flat.view(images.shape).float()


def posterize(images: Images, level: Level) -> Images:
    """Keep 8 to 4 bits."""
    unit = 2 ** (4 * level.abs()).floor()
    return (images / unit).floor() * unit


def solarize(images: Images, level: Level) -> Images:
    """Invert values from a threshold on, which falls from 256 to 0."""
    return torch.where(images >= 256 * (1 - level.abs()), 255 - images, images)


def grey(images: Images) -> Float[Tensor, "b 1 h w"]:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def blend(degenerate: Tensor, images: Images, level: Level) -> Images:
    """Extrapolate from a degenerate image, by 1 + ENHANCEMENT * level."""
    return (degenerate + (1 + ENHANCEMENT * level) * (images - degenerate)).clamp(0, 255)


def color(images: Images, level: Level) -> Images:
    return blend(grey(images), images, level)


def contrast(images: Images, level: Level) -> Images:
    return blend(grey(images).mean((2, 3), keepdim=True).round(), images, level)


def brightness(images: Images, level: Level) -> Images:
    return blend(torch.zeros_like(images), images, level)


def sharpness(images: Images, level: Level) -> Images:
    """Against a 3 x 3 average with weight 5 at its centre; the border stays."""
    if min(images.shape[-2:]) < 3:
        return images
    kernel = images.new_ones(images.shape[1], 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=images.shape[1])
    return blend(smooth, images, level)


def warp(images: Images, matrices: Float[Tensor, "b 2 3"]) -> Images:
    """Sample at x' = A x + t, in units of pixels from the centre; FILL outside."""
    half = images.new_tensor([images.shape[-1], images.shape[-2]]) / 2
    theta = matrices * torch.cat([half, half.new_ones(1)]) / half[:, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - FILL, grid, align_corners=False) + FILL


def _matrices(level: Level) -> Float[Tensor, "b 2 3"]:
    return torch.eye(2, 3, device=level.device).repeat(len(level), 1, 1)


def rotate(images: Images, level: Level) -> Images:
    """Counter-clockwise for positive levels, about the centre."""
    angle, matrices = torch.deg2rad(ROTATION * level.flatten()), _matrices(level)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angle.sin(), angle.sin()
    return warp(images, matrices)


def shear_x(images: Images, level: Level) -> Images:
    matrices = _matrices(level)
    matrices[:, 0, 1] = SHEAR * level.flatten()
    return warp(images, matrices)


def shear_y(images: Images, level: Level) -> Images:
    matrices = _matrices(level)
    matrices[:, 1, 0] = SHEAR * level.flatten()
    return warp(images, matrices)


def translate_x(images: Images, level: Level) -> Images:
    matrices = _matrices(level)
    matrices[:, 0, 2] = TRANSLATION * images.shape[-1] * level.flatten()
    return warp(images, matrices)


def translate_y(images: Images, level: Level) -> Images:
    matrices = _matrices(level)
    matrices[:, 1, 2] = TRANSLATION * images.shape[-2] * level.flatten()
    return warp(images, matrices)


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    identity, autocontrast, equalize, rotate, solarize, color, posterize, contrast, brightness,
    sharpness, shear_x, shear_y, translate_x, translate_y,
)  # fmt: skip
"""Table 1 of the paper."""
