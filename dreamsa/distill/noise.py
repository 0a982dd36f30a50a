"""Noise that moves with the camera: a map around the object, of which every view is a crop."""

from functools import lru_cache
from math import cos, floor, log, pi, sin

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.randomness import generator_for

TURN = 4
"""Widths of a view in a full turn of the camera."""


def refreshed(rates: tuple[float, float], step: int, total: int) -> float:
    """Sum over the steps before `step` of the refresh rate, which changes geometrically from the
    first to the last over `total` steps."""
    first, last = rates
    progress, decay = step / total, log(last / first)
    if decay == 0:
        return first * step
    return first * total * ((last / first) ** progress - 1) / decay


@lru_cache(maxsize=8)
def _maps(
    seed: int, index: int, channels: int, size: int
) -> tuple[Float[Tensor, "c height width"], Float[Tensor, "c size size"]]:
    """The noise around the object, periodic in azimuth, and that behind it."""
    rng = generator_for(seed, index, "world map", "cpu")
    around = torch.randn(channels, (TURN // 2 + 1) * size, TURN * size, generator=rng)
    return around, torch.randn(channels, size, size, generator=rng)


def consistent_noise(
    seed: int,
    age: float,
    azimuth_deg: Float[Tensor, "b"],
    elevation_deg: Float[Tensor, "b"],
    opacity: Float[Tensor, "b h w"],
    channels: int,
) -> Float[Tensor, "b {channels} h w"]:
    """Unit noise that is nearly the same for nearby cameras and changes slowly over a run: the
    world map of consistent flow distillation (arXiv:2501.05445).

    The paper refreshes its noise by a random walk; here it turns from one independent map to the
    next while `age` grows by 1, which needs no state.

    Args:
        age: See `refreshed`.
        opacity: Of the views at the latents' resolution; cells below 0.5 take noise that does not
            move.
    """
    first, turned = floor(age), (age - floor(age)) * pi / 2
    size = opacity.shape[-1]
    pairs = zip(*(_maps(seed, first + i, channels, size) for i in range(2)), strict=True)
    around, behind = (cos(turned) * one + sin(turned) * other for one, other in pairs)
    crops = []
    for azimuth, elevation in zip(azimuth_deg.tolist(), elevation_deg.tolist(), strict=True):
        x = round(azimuth / 360 * around.shape[2])
        y = round((90 - elevation) / 180 * (around.shape[1] - size))
        columns = (torch.arange(size) + x) % around.shape[2]
        crops.append(around[:, y : y + size][:, :, columns])
    covered = (opacity >= 0.5)[:, None].cpu()
    return torch.where(covered, torch.stack(crops), behind).to(opacity.device)
