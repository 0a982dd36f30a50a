"""Sampling of diffusion timesteps: random within a range, or falling over the run."""

from functools import lru_cache
from math import exp

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dreamsa.config import DistillConfig

DREAMTIME = (500.0, 800.0, 100.0, 300.0)
"""DreamTime's prior over timesteps (arXiv:2306.12422; the numbers are those of its public
implementations): 1 between the first two, Gaussian tails of these standard deviations below and
above."""


def timestep_range(
    config: DistillConfig, step: int, total: int, timesteps: int = 1000
) -> tuple[int, int]:
    """Inclusive range of the timesteps at `step` of `total`."""
    progress = min(step / max(config.anneal_until * total, 1), 1.0)
    low, high = (
        min(round((start + (end - start) * progress) * timesteps), timesteps - 1)
        for start, end in (config.min_timestep, config.max_timestep)
    )
    return low, high


def falling_timestep(config: DistillConfig, step: int, total: int, timesteps: int = 1000) -> int:
    """The timestep at `step` of `total` of the schedules that fall.

    linear: proportional to the progress. hifa: first - (first - last) sqrt(progress)
    (arXiv:2305.18766). dreamtime: the timestep above which the prior W has the progress'
    part of its mass between the two ends (arXiv:2306.12422).
    """
    first, last = config.max_timestep
    progress = min(step / max(config.anneal_until * total, 1), 1.0)
    if config.schedule == "dreamtime":
        high, low = (min(round(end * timesteps), timesteps - 1) for end in (first, last))
        mass = _mass(low, high, timesteps)
        return high - int(torch.searchsorted(mass, progress * mass[-1]).clamp(max=high - low))
    fallen = progress**0.5 if config.schedule == "hifa" else progress
    return min(round((first - (first - last) * fallen) * timesteps), timesteps - 1)


@lru_cache(maxsize=8)
def _mass(low: int, high: int, timesteps: int) -> Float64[Tensor, "n"]:
    """Cumulative prior from `high` down to `low`."""
    start, end, below, above = DREAMTIME
    weights = []
    for t in range(high, low - 1, -1):
        at = t * 1000 / timesteps
        off = (at - end) / above if at > end else min(at - start, 0.0) / below
        weights.append(exp(-(off**2) / 2))
    return torch.tensor(weights, dtype=torch.float64).cumsum(0)


def sample_timesteps(
    config: DistillConfig,
    step: int,
    total: int,
    count: int,
    rng: torch.Generator,
    timesteps: int = 1000,
) -> Int64[Tensor, "{count}"]:
    """`count` timesteps: uniform over `timestep_range`, or all at `falling_timestep`."""
    if config.schedule != "uniform":
        timestep = falling_timestep(config, step, total, timesteps)
        return torch.full((count,), timestep, device=rng.device)
    low, high = timestep_range(config, step, total, timesteps)
    return torch.randint(low, high + 1, (count,), generator=rng, device=rng.device)
