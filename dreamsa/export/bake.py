"""Colours for a surface: UV coordinates and a texture, or one colour per vertex, both asked from the field itself."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from scipy import ndimage
from torch import Tensor

from dreamsa.export import kernels
from dreamsa.export.mesh import Surface

QueryFn = Callable[[Float[Tensor, "n 3"], Float[Tensor, "n 3"]], tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]]
"""points, unit directions of sight -> (density in 1/world unit, rgb in [0, 1])."""

PADDING = 4
"""Texels between two charts: twice what bilinear filtering and the first mipmaps reach."""
CHUNK = 2**16
SAMPLES = 12
"""Along a line of sight through the surface."""
SLANT = 1.2
"""Tangent of the angle between the lines of sight and the normal: 50 degrees."""


class Charts(NamedTuple):
    """A surface cut open. Vertices on a cut appear once per side."""

    vertex: Int[np.ndarray, "k"]  # which vertex of the surface
    faces: Int[np.ndarray, "m 3"]  # of the k vertices; in the order and winding of the surface's
    uv: Float32[np.ndarray, "k 2"]  # in [0, 1]; (0, 0) is the picture's lower left corner


def unwrap(surface: Surface, size: int) -> Charts:
    """Flatten the surface into charts that fill a square of `size` texels (xatlas)."""
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(surface.vertices.astype(np.float32), surface.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.padding, packing.resolution = PADDING, size
    atlas.generate(pack_options=packing)
    vertex, faces, uv = atlas.get_mesh(0)
    return Charts(vertex.astype(np.int64), faces.astype(np.int64), np.clip(uv, 0, 1).astype(np.float32))


@torch.no_grad()
def colours_at(
    query: QueryFn,
    points: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    outside: float,
    inside: float,
    device: torch.device | str = "cpu",
) -> Float32[np.ndarray, "n 3"]:
    """What is seen on the surface, in [0, 1]: the field composited along four lines of sight, SLANT off the normal, and averaged.

    One look at the surface itself would show the colour of the outermost fog, and one look from straight above is not what a round
    body shows: half of it is seen at more than 45 degrees. Colours that depend on the direction are averaged as well.

    Args:
        outside, inside: How far above the surface the lines begin and below it end, world units along the normal.
    """
    step = (outside + inside) / SAMPLES
    found = []
    for start in range(0, len(points), CHUNK):
        at, normal = (torch.from_numpy(v[start : start + CHUNK]).float().to(device) for v in (points, normals))
        flat = normal[:, 2:].abs() < 0.9
        aside = torch.where(flat, normal.new_tensor([0.0, 0.0, 1.0]), normal.new_tensor([1.0, 0.0, 0.0]))
        right = torch.nn.functional.normalize(torch.linalg.cross(normal, aside), dim=-1)
        sights = [normal + SLANT * sign * way for way in (right, torch.linalg.cross(normal, right)) for sign in (1, -1)]
        found.append(torch.stack([_composite(query, at, sight, outside, step) for sight in sights]).mean(0).cpu().numpy())
    return np.concatenate(found).astype(np.float32) if found else np.zeros((0, 3), np.float32)


def _composite(query: QueryFn, at: Tensor, sight: Tensor, outside: float, step: float) -> Tensor:
    """Front to back, from `at` + outside * sight on, in steps of step * sight."""
    total, weight, light = torch.zeros_like(at), torch.zeros_like(at[:, 0]), torch.ones_like(at[:, 0])
    length, towards = step * (1 + SLANT**2) ** 0.5, -torch.nn.functional.normalize(sight, dim=-1)
    alive = torch.arange(len(at), device=at.device)
    for k in range(SAMPLES):
        density, rgb = query(at[alive] + (outside - (k + 0.5) * step) * sight[alive], towards[alive])
        passed = torch.exp(-density * length)
        seen = (light[alive] * (1 - passed)).clamp(min=1e-6)  # so that empty lines have a colour too
        total[alive] += seen[:, None] * rgb
        weight[alive] += seen
        light[alive] *= passed
        alive = alive[light[alive] > 0.02]
    return total / weight[:, None]


def bake(
    charts: Charts,
    surface: Surface,
    normals: Float[np.ndarray, "n 3"],
    size: int,
    colours: Callable[[Float[np.ndarray, "t 3"], Float[np.ndarray, "t 3"]], Float32[np.ndarray, "t 3"]],
    missing: Float[np.ndarray, "n 3"],
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The texture, sRGB as the field's colours are: row 0 is the top. Every texel outside the charts takes the nearest chart's
    colour, so that filtering never reaches a foreign one.

    Args:
        colours: (points, unit normals) -> rgb in [0, 1].
        missing: Added to them, per vertex of the surface, and between vertices by interpolation.
    """
    face_of, weights = np.full((size, size), -1, np.int32), np.zeros((size, size, 3), np.float32)
    flat = np.stack([charts.uv[:, 0] * size, (1 - charts.uv[:, 1]) * size, np.zeros(len(charts.uv))], 1)
    kernels.rasterize(flat, charts.faces, face_of, weights, np.full((size, size), -np.inf, np.float32))
    covered = face_of >= 0
    corners, share = charts.vertex[charts.faces[face_of[covered]]], weights[covered][:, :, None]
    across = (normals[corners] * share).sum(1)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    picture = np.zeros((size, size, 3), np.uint8)
    found = colours((surface.vertices[corners] * share).sum(1), across)
    picture[covered] = to_bytes(found + (missing[corners] * share).sum(1).astype(np.float32))
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return picture[tuple(nearest)]  # pyright: ignore[reportArgumentType]


def to_bytes(rgb: Float[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n 3"]:
    """[0, 1] to 0..255."""
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def srgb_to_linear(rgb: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """IEC 61966-2-1; in and out in [0, 1]."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
