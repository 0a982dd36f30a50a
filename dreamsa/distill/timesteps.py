"""Sampling of diffusion timesteps."""

import torch
from jaxtyping import Int64
from torch import Tensor

from dreamsa.config import SDSConfig


def timestep_range(
    config: SDSConfig, step: int, total: int, timesteps: int = 1000
) -> tuple[int, int]:
    """Inclusive range of the timesteps at `step` of `total`."""
    progress = min(step / max(config.anneal_until * total, 1), 1.0)
    low, high = (
        min(round((start + (end - start) * progress) * timesteps), timesteps - 1)
        for start, end in (config.min_timestep, config.max_timestep)
    )
    return low, high


def sample_timesteps(
    config: SDSConfig,
    step: int,
    total: int,
    count: int,
    rng: torch.Generator,
    timesteps: int = 1000,
) -> Int64[Tensor, "{count}"]:
    """`count` timesteps, uniform over `timestep_range`."""
    low, high = timestep_range(config, step, total, timesteps)
    return torch.randint(low, high + 1, (count,), generator=rng, device=rng.device)
