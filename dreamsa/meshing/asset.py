"""From a field to a coloured mesh: geometry, decimation, UVs, colours."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from dreamsa.choices import ColourMode
from dreamsa.meshing.bake import Charts, QueryFn, bake_texture, composite_colours, to_bytes, unwrap
from dreamsa.meshing.colour_correction import CalibratedView, vertex_correction
from dreamsa.meshing.hull import (
    DensityFn,
    Grid,
    KeptFn,
    Level,
    find_solid,
    keep_solid,
    sample_density,
)
from dreamsa.meshing.surface import Surface, Vectors, decimate, marching_cubes, vertex_normals

Colour = ColourMode | Literal["none"]


class Beneath(NamedTuple):
    """The scene that an edit stands on: where it is kept, so is its surface."""

    query: QueryFn
    low: Float[np.ndarray, "3"]
    high: Float[np.ndarray, "3"]
    kept: KeptFn


class Asset(NamedTuple):
    """A surface in world units, z up, front +x, with a texture, vertex colours or neither."""

    surface: Surface
    normals: Vectors  # outward, unit
    level: Level
    charts: Charts | None = None
    texture: UInt8[np.ndarray, "size size 3"] | None = None  # sRGB
    colours: UInt8[np.ndarray, "n 3"] | None = None  # sRGB


def make_asset(
    query: QueryFn,
    low: Float[np.ndarray, "3"],
    high: Float[np.ndarray, "3"],
    *,
    resolution: int = 128,
    faces: int | None = 20_000,
    colour: Colour = "texture",
    texture: int = 1024,
    views: Callable[[], Sequence[CalibratedView]] = lambda: (),
    device: torch.device | str = "cpu",
    stage: Callable[[str], None] = lambda text: None,
    beneath: Beneath | None = None,
) -> Asset:
    """Convert a field into a closed, coloured surface.

    Args:
        query: The field, as the renderer queries it.
        low, high: Corners of the box that contains the object, world units.
        resolution: Cells along the longest side of the box.
        faces: Maximum number of faces; None keeps all faces of marching cubes.
        texture: Side of the texture, texels.
        views: Renders the views that the colours are fitted to (see colour_correction.py).
        stage: Receives a short description of each stage as it begins.
        beneath: The parent's scene of an edit that keeps a part of it. There, before decimation,
            the vertices are those of the parent's own surface at this resolution.

    Raises:
        EmptyScene: Nothing is opaque; the message is a clause that gives the reason.
    """
    up = torch.tensor([[0.0, 0.0, 1.0]], device=device)

    def density(query: QueryFn) -> DensityFn:
        return lambda points: query(points.to(device), up.expand(len(points), 3))[0]

    stage(f"density at {resolution} cells")
    old = None
    if beneath is not None:
        old = sample_density(density(beneath.query), beneath.low, beneath.high, resolution)
    grid = sample_density(density(query), low, high, resolution, old)
    stage("surface")
    solid, level = find_solid(grid)
    if beneath is not None and old is not None:
        solid = keep_solid(solid, find_solid(old)[0], lambda at: beneath.kept(at.to(device)))
    surface = marching_cubes(solid)
    if faces is not None:
        surface = decimate(surface, faces)
    normals = vertex_normals(surface)
    if colour == "none":
        return Asset(surface, normals, level)
    inside, outside = penetration_depth(grid, solid), 4 * grid.cell
    colours = partial(composite_colours, query, outside=outside, inside=inside, device=device)
    stage("colours")
    baked = colours(surface.vertices, normals)
    correction = vertex_correction(surface, normals, baked, views())
    if colour == "vertex":
        return Asset(surface, normals, level, colours=to_bytes(baked + correction))
    stage(f"UVs of {len(surface.faces)} faces")
    charts = unwrap(surface, texture)
    stage(f"texture of {texture} x {texture}")
    image = bake_texture(charts, surface, normals, texture, colours, correction)
    return Asset(surface, normals, level, charts, image)


def penetration_depth(grid: Grid, solid: Grid) -> float:
    """Depth below the surface that contributes to its colour, world units.

    Three mean free paths at the median density inside, clamped to [4, 32] cells.
    """
    density = float(np.median(grid.values[solid.values >= 1]))
    return min(max(3 / max(density, 1e-6), 4 * grid.cell), 32 * grid.cell)
