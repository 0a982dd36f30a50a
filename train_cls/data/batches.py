"""Batches of an epoch, augmentation, and the channel statistics for normalisation."""

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from dreamsa.randomness import generator_for


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


def channel_stats(images: UInt8[Tensor, "n c h w"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over images and positions, scaled to [0, 1].

    Exact: computed from the histogram of the 256 values. The deviation is at least 1/255, to be
    safe as a divisor.
    """
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(1):
        density = torch.bincount(channel.flatten(), minlength=256).cpu().double() / channel.numel()
        mean = (density * values).sum()
        means.append(mean.item() / 255)
        stds.append(max((density * (values - mean) ** 2).sum().sqrt().item() / 255, 1 / 255))
    return tuple(means), tuple(stds)
