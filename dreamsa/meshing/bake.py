"""Colours of a surface, queried from the field: a texture on UV charts, or colours per vertex."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from scipy import ndimage
from torch import Tensor

from dreamsa.meshing import kernels_numba as kernels
from dreamsa.meshing.surface import Surface, Vectors

QueryFn = Callable[
    [Float[Tensor, "n 3"], Float[Tensor, "n 3"]], tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]
]
"""points, unit viewing directions -> (density in 1/world unit, rgb in [0, 1])."""

PADDING = 4
"""Texels between two charts: twice the reach of bilinear filtering and the first mipmaps."""
CHUNK = 2**16
SAMPLES = 12
"""Samples per line of sight through the surface."""
SLANT = 1.2
"""Tangent of the angle between the lines of sight and the normal: 50 degrees."""


class Charts(NamedTuple):
    """A surface cut open. Vertices on a cut occur once per side."""

    vertex: Int[np.ndarray, "k"]  # index of each chart vertex in the surface
    faces: Int[np.ndarray, "m 3"]  # indices of chart vertices; order and winding are the surface's
    uv: Float32[np.ndarray, "k 2"]  # in [0, 1]; (0, 0) is the lower left corner of the texture


def unwrap(surface: Surface, size: int) -> Charts:
    """Flatten the surface into charts packed into a square of `size` texels (xatlas)."""
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(surface.vertices.astype(np.float32), surface.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.padding, packing.resolution = PADDING, size
    atlas.generate(pack_options=packing)
    vertex, faces, uv = atlas.get_mesh(0)
    vertex, faces = vertex.astype(np.int64), faces.astype(np.int64)
    return Charts(vertex, faces, np.clip(uv, 0, 1).astype(np.float32))


@torch.no_grad()
def composite_colours(
    query: QueryFn,
    points: Vectors,
    normals: Vectors,
    outside: float,
    inside: float,
    device: torch.device | str = "cpu",
) -> Float32[np.ndarray, "n 3"]:
    """Visible colours of points in [0, 1]: the mean of four lines of sight, SLANT off the normal.

    The colour at the surface itself is that of the outermost fog, and a line along the normal is
    not representative: half of a round body is seen at more than 45 degrees.

    Args:
        outside, inside: Start above and end below the surface, world units along the normal.
    """
    step = (outside + inside) / SAMPLES
    colours = []
    for start in range(0, len(points), CHUNK):
        origin, normal = (
            torch.from_numpy(v[start : start + CHUNK]).float().to(device) for v in (points, normals)
        )
        x, _, z = torch.eye(3, device=device)
        other = torch.where(normal[:, 2:].abs() < 0.9, z, x)
        right = torch.nn.functional.normalize(torch.linalg.cross(normal, other), dim=-1)
        tangents = (right, torch.linalg.cross(normal, right))
        lines = [normal + SLANT * sign * tangent for tangent in tangents for sign in (1, -1)]
        composited = [_composite(query, origin, line, outside, step) for line in lines]
        colours.append(torch.stack(composited).mean(0).cpu().numpy())
    return np.concatenate(colours).astype(np.float32) if colours else np.zeros((0, 3), np.float32)


def _composite(query: QueryFn, origin: Tensor, line: Tensor, outside: float, step: float) -> Tensor:
    """Composite front to back, from `origin` + outside * line in steps of step * line."""
    total, weights = torch.zeros_like(origin), torch.zeros_like(origin[:, 0])
    transmittance = torch.ones_like(weights)
    length, directions = step * (1 + SLANT**2) ** 0.5, -torch.nn.functional.normalize(line, dim=-1)
    alive = torch.arange(len(origin), device=origin.device)
    for k in range(SAMPLES):
        points = origin[alive] + (outside - (k + 0.5) * step) * line[alive]
        density, rgb = query(points, directions[alive])
        passed = torch.exp(-density * length)
        weight = (transmittance[alive] * (1 - passed)).clamp(min=1e-6)  # colours empty lines too
        total[alive] += weight[:, None] * rgb
        weights[alive] += weight
        transmittance[alive] *= passed
        alive = alive[transmittance[alive] > 0.02]
    return total / weights[:, None]


def bake_texture(
    charts: Charts,
    surface: Surface,
    normals: Vectors,
    size: int,
    colours: Callable[[np.ndarray, np.ndarray], np.ndarray],
    correction: Vectors,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Bake an sRGB texture; row 0 is the top.

    Texels outside the charts take the colour of the nearest chart, so that filtering mixes in no
    other.

    Args:
        colours: (points [n, 3], unit normals [n, 3]) -> rgb [n, 3] float32 in [0, 1].
        correction: Added to them, per vertex of the surface, interpolated between vertices.
    """
    u, v = charts.uv.T
    flat = np.stack([u * size, (1 - v) * size, np.zeros(len(u))], 1)
    face_of, weights, _ = rasterize(flat, charts.faces, size)
    covered = face_of >= 0
    corners, weights = charts.vertex[charts.faces[face_of[covered]]], weights[covered][:, :, None]
    normal = (normals[corners] * weights).sum(1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    texture = np.zeros((size, size, 3), np.uint8)
    rgb = colours((surface.vertices[corners] * weights).sum(1), normal)
    texture[covered] = to_bytes(rgb + (correction[corners] * weights).sum(1).astype(np.float32))
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return texture[tuple(nearest)]  # pyright: ignore[reportArgumentType]


def rasterize(corners: np.ndarray, faces: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """`kernels.rasterize` into new buffers: face_of, weights and z_buffer."""
    face_of, weights = np.full((size, size), -1, np.int32), np.zeros((size, size, 3), np.float32)
    z_buffer = np.full((size, size), -np.inf, np.float32)
    kernels.rasterize(corners, faces, face_of, weights, z_buffer)
    return face_of, weights, z_buffer


def to_bytes(rgb: Float[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n 3"]:
    """Convert [0, 1] to 0..255."""
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def srgb_to_linear(rgb: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """IEC 61966-2-1; input and output in [0, 1]."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
