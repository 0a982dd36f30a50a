"""Normals and diffuse shading (DreamFusion, sec. 3.1). The default is albedo, as in the thesis."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from dreamsa.config import Shading
from dreamsa.rendering.occupancy import DensityFn

Vectors = Float[Tensor, "n 3"]


def density_normals(density: DensityFn, points: Vectors, eps: float = 0.01) -> Vectors:
    """Unit normals from the density gradient, by finite differences on a tetrahedron of size `eps`.

    Differentiable in the field's parameters. 0 where the density is constant.
    """
    corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    values = density((points[:, None] + eps * corners).reshape(-1, 3)).reshape(-1, 4)
    return normalize(-(values @ corners), dim=-1, eps=1e-6)


def depth_normals(
    points: Float[Tensor, "b h w 3"], hit: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b h w 3"]:
    """Unit normals, towards the camera, of the surface in a depth image; 0 where there is none.

    Args:
        points: Surface point of each pixel in camera axes (right, up, backward); row 0 is the top.
        hit: Pixels that show the surface.
    """

    def slope(axis: int) -> Tensor:
        """The smaller of both differences: the other may cross an edge."""
        steps = points.diff(dim=axis)
        pairs = hit.shape[axis] - 1
        valid = (hit.narrow(axis, 1, pairs) & hit.narrow(axis, 0, pairs))[..., None]
        steps = torch.where(valid, steps, torch.full_like(steps, 1e6))
        far = torch.full_like(points.narrow(axis, 0, 1), 1e6)
        forward, backward = torch.cat([steps, far], axis), torch.cat([far, steps], axis)
        nearer = forward.norm(dim=-1, keepdim=True) < backward.norm(dim=-1, keepdim=True)
        return torch.where(nearer, forward, backward)

    right, down = slope(2), slope(1)
    valid = hit & (right.norm(dim=-1) < 1e5) & (down.norm(dim=-1) < 1e5)
    return normalize(torch.linalg.cross(right, -down), dim=-1, eps=1e-12) * valid[..., None]


def shade(
    albedo: Vectors,
    normals: Vectors,
    light: Vectors | Float[Tensor, "3"],
    shading: Shading,
    ambient: float = 0.1,
) -> Vectors:
    """Colours under a light in the unit direction `light`; textureless has a white albedo."""
    if shading == "albedo":
        return albedo
    lit = ambient + (1 - ambient) * (normals * light).sum(-1, keepdim=True).clamp(min=0)
    return (torch.ones_like(albedo) if shading == "textureless" else albedo) * lit
