"""Radiance field: hash grid, small MLP, and a density bias that initialises it as a soft ball."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamsa.config import Activation, FieldConfig
from dreamsa.fields.backends import make_encode
from dreamsa.fields.directions import HARMONICS, spherical_harmonics
from dreamsa.fields.layout import Layout, new_table
from dreamsa.randomness import random_linear

BLOCK = 8192
"""Points evaluated at a time without gradients on a CPU. torch computes that many activations in
one thread."""
LANES = 64
"""A CPU computes activations in blocks of this many at most, and the rest of them differently."""
GEOMETRY = 15
"""Features that a view-dependent colour is computed from, besides the direction (Instant-NGP)."""


class Sample(NamedTuple):
    """Density and colour of points."""

    density: Float[Tensor, "n"]  # 1/world unit, at least 0
    rgb: Float[Tensor, "n 3"]  # in [0, 1]


@runtime_checkable
class Queryable(Protocol):
    """Anything with density and colour at points, such as a `HashField`."""

    def query(self, points: Tensor, directions: Tensor | None = None) -> Sample: ...


def density_of(raw: Float[Tensor, "n"], activation: Activation) -> Float[Tensor, "n"]:
    """Densities from raw outputs. The exponential is clamped to e^15 so that it stays finite."""
    return nn.functional.softplus(raw) if activation == "softplus" else raw.clamp(max=15).exp()


class HashField(nn.Module):
    """A field in world units. The parameters are the same for every hash-grid backend."""

    sharpness: Tensor
    """Factor on the density, which training raises (`dreamsa.train`)."""

    def __init__(self, config: FieldConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        layout = Layout(config.grid)
        self.encode = make_encode(layout, config.backend, rng.device)
        self.table = nn.Parameter(new_table(layout, rng))
        self.register_buffer("sharpness", torch.ones((), device=rng.device))
        self.hidden = random_linear(layout.width, config.width, rng)
        self.out = random_linear(config.width, 1 + GEOMETRY if config.view_dependent else 4, rng)
        if config.view_dependent:
            self.colour_hidden = random_linear(GEOMETRY + HARMONICS, config.width, rng)
            self.colour_out = random_linear(config.width, 3, rng)

    def query(
        self, points: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"] | None = None
    ) -> Sample:
        """Density and colour at points.

        Without gradients on a CPU, they are the same bits whatever other points are asked for.

        Args:
            directions: Unit vectors along the rays. View-dependent colours are 0 without them.
        """
        if torch.is_grad_enabled() or points.device.type != "cpu" or not len(points):
            return self._query(points, directions)
        parts = []
        for start in range(0, len(points), BLOCK):
            chunk = [
                value if value is None else _padded(value[start : start + BLOCK])
                for value in (points, directions)
            ]
            parts.append(self._query(chunk[0], chunk[1]))  # pyright: ignore[reportArgumentType]
        density, rgb = (torch.cat(values)[: len(points)] for values in zip(*parts, strict=True))
        return Sample(density, rgb)

    def _query(self, points: Tensor, directions: Tensor | None) -> Sample:
        radius = self.config.radius
        encoding = self.encode(((points + radius) / (2 * radius)).clamp(0, 1), self.table)
        raw = self.out(self.hidden(encoding).relu())
        bias = self.config.blob_density * (1 - points.norm(dim=-1) / self.config.blob_radius)
        density = self.sharpness * density_of(raw[:, 0] + bias, self.config.activation)
        if not self.config.view_dependent:
            return Sample(density, raw[:, 1:].sigmoid())
        if directions is None:
            return Sample(density, raw.new_zeros(len(raw), 3))
        features = torch.cat([raw[:, 1:], spherical_harmonics(directions)], dim=1)
        return Sample(density, self.colour_out(self.colour_hidden(features).relu()).sigmoid())


def _padded(rows: Float[Tensor, "n 3"]) -> Float[Tensor, "m 3"]:
    """Rows of zeros added up to a multiple of LANES."""
    return nn.functional.pad(rows, (0, 0, 0, -len(rows) % LANES))
