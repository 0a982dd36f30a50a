"""From a field to something that can be written to a file: geometry first, then fewer faces, then UVs, then colours."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from dreamsa.export import bake
from dreamsa.export.bake import Charts, QueryFn
from dreamsa.export.mesh import Grid, Level, Surface, decimate, find_solid, march, sample_density, vertex_normals
from dreamsa.export.project import Photograph, correction

Colour = Literal["texture", "vertex", "none"]


class Asset(NamedTuple):
    """A coloured surface in world units, z up, front +x. It has a texture, or colours, or neither."""

    surface: Surface
    normals: Float[np.ndarray, "n 3"]  # outward, unit
    level: Level  # where the surface was found
    charts: Charts | None = None
    picture: UInt8[np.ndarray, "size size 3"] | None = None  # sRGB
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
    photographs: Callable[[], Sequence[Photograph]] = lambda: (),
    device: torch.device | str = "cpu",
    stage: Callable[[str], None] = lambda text: None,
) -> Asset:
    """Turn a field into a closed, coloured surface.

    Args:
        query: The field, as a renderer sees it.
        low, high: The box that holds the object, world units.
        resolution: Cells along the box' longest side.
        faces: Most faces; None keeps all that marching cubes makes.
        texture: Side of the texture, texels.
        photographs: Takes pictures of the scene from all around, to which the colours are fitted (see project.py); by default none.
        stage: Is told what is being done, in a few words.

    Raises:
        EmptyScene: There is nothing to show; the message is a clause that says why.
    """
    up = torch.tensor([[0.0, 0.0, 1.0]], device=device)
    stage(f"density at {resolution} cells")
    grid = sample_density(lambda points: query(points.to(device), up.expand(len(points), 3))[0], low, high, resolution)
    stage("surface")
    solid, level = find_solid(grid)
    surface = march(solid)
    if faces is not None:
        surface = decimate(surface, faces)
    normals = vertex_normals(surface)
    if colour == "none":
        return Asset(surface, normals, level)
    inside = reach(grid, solid)

    def colours(points: Float[np.ndarray, "n 3"], across: Float[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
        return bake.colours_at(query, points, across, 4 * grid.cell, inside, device)

    stage("colours")
    baked = colours(surface.vertices, normals)
    missing = correction(surface, normals, baked, photographs())
    if colour == "vertex":
        return Asset(surface, normals, level, colours=bake.to_bytes(baked + missing))
    stage(f"UVs of {len(surface.faces)} faces")
    charts = bake.unwrap(surface, texture)
    stage(f"texture of {texture} x {texture}")
    return Asset(surface, normals, level, charts, bake.bake(charts, surface, normals, texture, colours, missing))


def reach(grid: Grid, solid: Grid) -> float:
    """How far below the surface light comes from, world units: three mean free paths, in [4, 32] cells."""
    usual = float(np.median(grid.values[solid.values >= 1]))
    return min(max(3 / max(usual, 1e-6), 4 * grid.cell), 32 * grid.cell)
