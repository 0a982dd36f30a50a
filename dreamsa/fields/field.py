"""The field: hash grid, small MLP, and a density blob that starts it as a soft ball."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamsa.fields.directions import HARMONICS, spherical_harmonics
from dreamsa.fields.hashgrid import BackendName, HashGridConfig, make_encode, new_table
from dreamsa.randomness import random_linear

Activation = Literal["softplus", "exp"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

GEOMETRY = 15
"""Features that a view-dependent colour is computed from, besides the direction (Instant-NGP's number)."""


@dataclass(frozen=True)
class FieldConfig:
    """How a scene is represented."""

    grid: HashGridConfig = field(default_factory=HashGridConfig)
    backend: BackendName = "auto"
    hidden: int = 32
    """Width of the MLP's hidden layer."""
    radius: float = 1.0
    """Half the side of the cube that holds the scene, world units; the field is empty outside."""
    blob_density: float = 10.0
    """Height of the density bias blob_density * (1 - |x| / blob_radius) before softplus (Magic3D, arXiv:2211.10440)."""
    blob_radius: float = 0.5
    activation: Activation = "softplus"
    """What makes a density of the MLP's output. softplus grows linearly; exp (Instant-NGP, app. E) reaches an
    opaque surface in fewer steps, for fitting photographs."""
    view_dependent: bool = False
    """Colours that change with the direction they are seen from, for fitting photographs. Score distillation wants them to stay."""

    def __post_init__(self) -> None:
        if not 1 <= self.hidden <= 1024:
            raise ValueError(f"field.hidden must lie in [1, 1024], got {self.hidden}.")
        if not 0 < self.radius <= 16:
            raise ValueError(f"field.radius must lie in (0, 16] world units, got {self.radius}.")
        if not 0 < self.blob_radius <= self.radius * 2:
            raise ValueError(f"field.blob_radius must lie in (0, 2 radius = {2 * self.radius}], got {self.blob_radius}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"field.activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}.")
        if not 0 <= self.blob_density <= 1000:
            raise ValueError(f"field.blob_density must lie in [0, 1000], got {self.blob_density}.")


class Sample(NamedTuple):
    density: Float[Tensor, "n"]  # in 1/world unit, at least 0
    rgb: Float[Tensor, "n 3"]  # in [0, 1]


def density_of(raw: Float[Tensor, "n"], activation: Activation) -> Float[Tensor, "n"]:
    """Densities of the MLP's outputs. The exponential stops at e^15, where half a thousandth of a unit is opaque."""
    return nn.functional.softplus(raw) if activation == "softplus" else raw.clamp(max=15).exp()


class HashField(nn.Module):
    """Points in world units -> Sample. Parameters: `table`, `hidden.*`, `out.*`, equal for every backend."""

    def __init__(self, config: FieldConfig, rng: torch.Generator) -> None:
        """Fresh parameters, drawn from `rng` and placed on its device."""
        super().__init__()
        self.config = config
        self.encode = make_encode(config.grid, config.backend, rng.device)
        self.table = nn.Parameter(new_table(config.grid, rng))
        self.hidden = random_linear(config.grid.width, config.hidden, rng)
        self.out = random_linear(config.hidden, 1 + GEOMETRY if config.view_dependent else 4, rng)
        if config.view_dependent:
            self.colour_hidden = random_linear(GEOMETRY + HARMONICS, config.hidden, rng)
            self.colour_out = random_linear(config.hidden, 3, rng)

    def query(self, points: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"] | None = None) -> Sample:
        """Density and colour. Where colours depend on it, `directions` are unit vectors along the rays; without them colours are 0."""
        radius = self.config.radius
        encoding = self.encode(((points + radius) / (2 * radius)).clamp(0, 1), self.table)
        raw = self.out(torch.relu(self.hidden(encoding)))
        bias = self.config.blob_density * (1 - points.norm(dim=-1) / self.config.blob_radius)
        return Sample(density_of(raw[:, 0] + bias, self.config.activation), self._colour(raw[:, 1:], directions))

    def _colour(self, raw: Float[Tensor, "n k"], directions: Float[Tensor, "n 3"] | None) -> Float[Tensor, "n 3"]:
        if not self.config.view_dependent:
            return raw.sigmoid()
        if directions is None:
            return raw.new_zeros(len(raw), 3)
        seen = torch.cat([raw, spherical_harmonics(directions)], dim=1)
        return self.colour_out(torch.relu(self.colour_hidden(seen))).sigmoid()
