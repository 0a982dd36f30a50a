"""Batches of an epoch, augmentation, and the channel statistics for normalisation."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, UInt8
from scipy.special import betaincinv
from torch import Tensor

from dreamsa.randomness import generator_for
from train_cls.config import AugmentConfig
from train_cls.data.images import FileImages, Images, histogram

ERASED_AREA = (0.02, 1 / 3)
"""Of a rectangle, relative to the image."""
ERASED_ASPECT = 0.3
"""Min ratio of its height to its width; the max is the inverse."""


def batch_order(
    count: int, batch: int, epoch: int, seed: int, drop_last: bool = False
) -> list[Int64[Tensor, " k"]]:
    """Positions of each batch of an epoch: a permutation of `count` images, a pure function of
    (seed, epoch).

    The last batch may be smaller; `drop_last` omits it.
    """
    if count < 1 or batch < 1:
        raise ValueError(
            f"Batches need at least 1 image and a batch of at least 1, got {count} images and a "
            f"batch of {batch}."
        )
    order = torch.randperm(count, generator=generator_for(seed, epoch, "batches"))
    batches = list(order.split(batch))
    return batches[:-1] if drop_last and len(batches[-1]) < batch else batches


def augment(
    images: UInt8[Tensor, "b c h w"], rng: torch.Generator, flip: bool, pad: int
) -> UInt8[Tensor, "b c h w"]:
    """Zero-pad each image by `pad` pixels and crop at random; with `flip`, mirror it left to right
    with probability 1/2.

    As in He et al. (arXiv:1512.03385, section 4.2). Runs on the images' device, but draws on the
    generator's, so that a CPU generator gives the same images on every device.
    """
    b, _, h, w = images.shape
    device = images.device
    if pad:
        tops, lefts = torch.randint(0, 2 * pad + 1, (2, b), generator=rng, device=rng.device).to(
            device
        )
        windows = (
            F.pad(images, (pad, pad, pad, pad)).unfold(2, h, 1).unfold(3, w, 1)
        )  # b c 2pad+1 2pad+1 h w, a view
        images = windows.movedim(1, 3)[torch.arange(b, device=device), tops, lefts]  # b c h w
    if flip:
        mirrored = torch.rand(b, generator=rng, device=rng.device).to(device) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    return images


def erase(
    images: UInt8[Tensor, "b c h w"], rng: torch.Generator, probability: float
) -> UInt8[Tensor, "b c h w"]:
    """Replace one rectangle of each image by uniform noise with the given probability (random
    erasing, arXiv:1708.04896; areas and aspects as in timm).

    The rectangle's relative area is uniform in ERASED_AREA, the logarithm of its aspect ratio
    uniform; sides longer than the image's are cut. Draws on the generator's device.
    """
    if probability == 0:
        return images
    b, _, h, w = images.shape
    device = images.device
    chosen, area, aspect, top, left = torch.rand(5, b, 1, generator=rng, device=rng.device).to(
        device
    )
    area = (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area) * h * w
    aspect = ERASED_ASPECT ** (2 * aspect - 1)
    height = (area * aspect).sqrt().round().clamp(1, h)  # [b, 1]
    width = (area / aspect).sqrt().round().clamp(1, w)
    down = torch.arange(h, device=device) - (top * (h - height + 1)).floor()  # [b, h]
    right = torch.arange(w, device=device) - (left * (w - width + 1)).floor()
    rows = (down >= 0) & (down < height) & (chosen < probability)
    columns = (right >= 0) & (right < width)
    noise = torch.randint(
        0, 256, images.shape, generator=rng, device=rng.device, dtype=torch.uint8
    ).to(device)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], noise, images)


def mix(
    images: UInt8[Tensor, "b c h w"],
    labels: Int64[Tensor, "b"],
    classes: int,
    config: AugmentConfig,
    rng: torch.Generator,
) -> tuple[
    UInt8[Tensor, "b c h w"] | Float32[Tensor, "b c h w"],
    Int64[Tensor, "b"] | Float32[Tensor, "b classes"],
]:
    """Mix each image with another of the batch by mixup or cutmix, with one lambda ~ Beta(alpha,
    alpha) per batch; with both, each batch takes either with probability 1/2, as in timm.

    Mixup (arXiv:1710.09412): lambda * x_i + (1 - lambda) * x_j. Cutmix (arXiv:1905.04899): x_i with
    a rectangle of x_j of relative area 1 - lambda, cut at the edges; lambda becomes the fraction
    of x_i that remains. j is a random permutation of i.

    Args:
        rng: On the CPU.

    Returns:
        Mixed images, float in [0, 1] after mixup, and the weight of each class, lambda * y_i + (1 -
        lambda) * y_j; both as they are if `config` has neither.
    """
    if not (config.mixup or config.cutmix):
        return images, labels
    which, quantile = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
    cuts = config.cutmix > 0 and (config.mixup == 0 or which < 0.5)
    alpha = config.cutmix if cuts else config.mixup
    weight = float(betaincinv(alpha, alpha, quantile))  # lambda: the inverse of Beta's cdf
    other = torch.randperm(len(images), generator=rng).to(images.device)
    if cuts:
        rows, columns = _rectangle(images.shape[-2], images.shape[-1], 1 - weight, rng)
        mixed = images.clone()
        mixed[..., rows, columns] = images[other][..., rows, columns]
        cut = (rows.stop - rows.start) * (columns.stop - columns.start)
        weight = 1 - cut / (images.shape[-2] * images.shape[-1])
    else:
        scaled = images.float() / 255
        mixed = scaled[other].lerp_(scaled, weight)
    targets = F.one_hot(labels, classes).float()
    return mixed, targets[other].lerp_(targets, weight)


def _rectangle(height: int, width: int, area: float, rng: torch.Generator) -> tuple[slice, slice]:
    """A rectangle of the image's aspect and the given relative area around a random point, cut at
    the edges."""
    side = math.sqrt(area)
    middle = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
    bounds = []
    for size, at in zip((height, width), middle, strict=True):
        centre, half = int(at * size), int(side * size) / 2
        bounds.append(
            slice(max(math.floor(centre - half), 0), min(math.floor(centre + half), size))
        )
    return bounds[0], bounds[1]


def channel_stats(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over images and positions, scaled to [0, 1].

    Exact: computed from the histogram of the 256 values. The deviation is at least 1/255, to be
    safe as a divisor.
    """
    if isinstance(images, FileImages):
        counts = images.histogram
        counts = images.survey().histogram if counts is None else counts
    else:
        counts = histogram(images)
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for density in counts.double() / counts.sum(1, keepdim=True):
        mean = (density * values).sum()
        means.append(mean.item() / 255)
        stds.append(max((density * (values - mean) ** 2).sum().sqrt().item() / 255, 1 / 255))
    return tuple(means), tuple(stds)
