"""From normals and colours to what a light shows: DreamFusion, sec. 3.1. Albedo is the default, as in the thesis."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dreamsa.render.occupancy import DensityFn

ShadingName = Literal["albedo", "lambertian", "textureless"]


def density_normals(density: DensityFn, points: Float[Tensor, "n 3"], eps: float = 0.01) -> Float[Tensor, "n 3"]:
    """Unit normals, the direction in which density falls, by four samples on a tetrahedron of edge ~ eps.

    Works with every backend, differentiable in the field's parameters. Where density is constant the normal is 0.
    """
    corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    around = density((points[:, None] + eps * corners).reshape(-1, 3)).reshape(-1, 4)
    return normalize(-(around @ corners), dim=-1, eps=1e-6)


def shade(
    albedo: Float[Tensor, "n 3"],
    normals: Float[Tensor, "n 3"],
    light: Float[Tensor, "n 3"] | Float[Tensor, "3"],
    shading: ShadingName,
    ambient: float = 0.1,
) -> Float[Tensor, "n 3"]:
    """Colours under a light from the unit direction `light`; textureless replaces the albedo by white."""
    if shading == "albedo":
        return albedo
    diffuse = (normals * light).sum(-1, keepdim=True).clamp(min=0)
    lit = ambient + (1 - ambient) * diffuse
    return (torch.ones_like(albedo) if shading == "textureless" else albedo) * lit
