"""What is behind the object: a random plain colour (the default), one colour, or a learned environment."""

from typing import Literal

import torch
from torch import Tensor, nn

from dreamsa.randomness import uniform

BackgroundName = Literal["random", "white", "black", "grey", "learned"]
SOLID = {"white": 1.0, "black": 0.0, "grey": 0.7}


def random_grey(count: int, rng: torch.Generator) -> Tensor:
    """One plain grey with a slight tint per view, [count, 3] in [0, 1]: the object must stand out from any of them."""
    tint = 0.03 * torch.randn(count, 3, generator=rng, device=rng.device)
    return (uniform(0.25, 0.95, count, rng)[:, None] + tint).clamp(0, 1)


class LearnedBackground(nn.Module):
    """Direction -> colour: a small MLP on low-frequency sines and cosines, as DreamFusion's."""

    def __init__(self, rng: torch.Generator, frequencies: int = 4, hidden: int = 16) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.layers = nn.Sequential(nn.Linear(6 * frequencies, hidden), nn.ReLU(), nn.Linear(hidden, 3)).to(rng.device)
        with torch.no_grad():
            for layer in (self.layers[0], self.layers[2]):
                for parameter in layer.parameters():
                    draw = torch.rand(parameter.shape, generator=rng, device=rng.device)
                    parameter.copy_((draw * 2 - 1) / layer.in_features**0.5)

    def forward(self, directions: Tensor) -> Tensor:
        """Unit vectors [n, 3] -> colours [n, 3] in [0, 1]."""
        scales = 2.0 ** torch.arange(self.frequencies, device=directions.device)
        phases = (directions[:, :, None] * scales).flatten(1)
        return self.layers(torch.cat([phases.sin(), phases.cos()], dim=1)).sigmoid()
