"""Backgrounds: a random colour per view (the default), a fixed colour, or a learned environment."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamsa.randomness import random_linear, uniform

SOLID = {"white": 1.0, "black": 0.0, "grey": 0.7}


def random_grey(count: int, rng: torch.Generator) -> Float[Tensor, "{count} 3"]:
    """One grey per view, in [0, 1], with a tint that semi-transparent density cannot imitate."""
    tint = 0.15 * torch.randn(count, 3, generator=rng, device=rng.device)
    return (uniform(0.25, 0.95, count, rng)[:, None] + tint).clamp(0, 1)


class LearnedBackground(nn.Module):
    """Direction -> colour: a small MLP on a low-frequency positional encoding (DreamFusion)."""

    def __init__(self, rng: torch.Generator, frequencies: int = 4, width: int = 16) -> None:
        super().__init__()
        self.frequencies: int = frequencies
        first, last = random_linear(6 * frequencies, width, rng), random_linear(width, 3, rng)
        self.layers = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Unit vectors -> colours in [0, 1]."""
        n = self.frequencies
        scales = torch.logspace(0, n - 1, n, base=2.0, device=directions.device)
        phases = (directions[:, :, None] * scales).flatten(1)
        return self.layers(torch.cat([phases.sin(), phases.cos()], dim=1)).sigmoid()
