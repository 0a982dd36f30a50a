"""From normals and colours to what a light shows: DreamFusion, sec. 3.1. Albedo is the default, as in the thesis."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
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


def depth_normals(points: Float[Tensor, "b h w 3"], seen: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w 3"]:
    """Unit normals, towards the camera, of the surface that a depth picture shows; 0 where nothing is seen.

    Inside a soft field the density's slope is noise; the expected depth is smooth.

    Args:
        points: What each pixel shows, in the camera's axes (right, up, backward); row 0 is the top.
    """

    def slope(axis: int) -> Tensor:
        """The difference to the next or the last pixel, whichever is nearer: the other may lie beyond an edge."""
        steps = points.diff(dim=axis)
        linked = (seen.narrow(axis, 1, seen.shape[axis] - 1) & seen.narrow(axis, 0, seen.shape[axis] - 1))[..., None]
        steps = torch.where(linked, steps, torch.full_like(steps, 1e6))
        far = torch.full_like(points.narrow(axis, 0, 1), 1e6)
        ahead, behind = torch.cat([steps, far], axis), torch.cat([far, steps], axis)
        return torch.where(ahead.norm(dim=-1, keepdim=True) < behind.norm(dim=-1, keepdim=True), ahead, behind)

    right, down = slope(2), slope(1)
    known = seen & (right.norm(dim=-1) < 1e5) & (down.norm(dim=-1) < 1e5)
    return normalize(torch.linalg.cross(right, -down), dim=-1, eps=1e-12) * known[..., None]


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
