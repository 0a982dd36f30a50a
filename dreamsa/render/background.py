"""What is behind the object: a random plain colour (the default), one colour, or a learned environment."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamsa.randomness import random_linear, uniform

BackgroundName = Literal["random", "white", "black", "grey", "learned"]
SOLID = {"white": 1.0, "black": 0.0, "grey": 0.7}


def random_grey(count: int, rng: torch.Generator) -> Float[Tensor, "{count} 3"]:
    """One plain grey with a tint per view, in [0, 1]: the object must stand out from any of them.

    Behind untinted greys a ghost passes for a white, grey or brown object: it takes on the grey of the moment. No object has the tint of the moment.
    """
    tint = 0.15 * torch.randn(count, 3, generator=rng, device=rng.device)
    return (uniform(0.25, 0.95, count, rng)[:, None] + tint).clamp(0, 1)


class LearnedBackground(nn.Module):
    """Direction -> colour: a small MLP on low-frequency sines and cosines, as DreamFusion's."""

    def __init__(self, rng: torch.Generator, frequencies: int = 4, hidden: int = 16) -> None:
        super().__init__()
        self.frequencies: int = frequencies
        self.layers = nn.Sequential(random_linear(6 * frequencies, hidden, rng), nn.ReLU(), random_linear(hidden, 3, rng))

    def forward(self, directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Unit vectors -> colours in [0, 1]."""
        scales = torch.logspace(0, self.frequencies - 1, self.frequencies, base=2.0, device=directions.device)
        phases = (directions[:, :, None] * scales).flatten(1)
        return self.layers(torch.cat([phases.sin(), phases.cos()], dim=1)).sigmoid()
