"""Surfaces as point sets: Chamfer distance and F-score of a scene's mesh, and floaters."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial import KDTree

from dreamsa.meshing.hull import EmptyScene, Grid, find_solid, sample_density
from dreamsa.meshing.surface import Surface, marching_cubes
from dreamsa.scene import Scene
from dreamsa.toybox.shapes import RADIUS, build, distances

RESOLUTION = 64
"""Cells along the longest side of a scene's box."""
TRUE_RESOLUTION = 160
"""Cells per side of the box of a true object."""
THRESHOLD = 0.02
"""Distance within which a point of one surface lies on the other, world units; an object's radius
is 0.5."""
POINTS, QUERIES = 50_000, 20_000
"""Points sampled per surface, and how many of them look for their nearest neighbours: spacing alone
makes equal surfaces differ by about 0.003."""
MIN_DENSITY = 5.0
"""Density of matter, 1/world unit: half opaque over 0.14. Finished scenes are fog of 10 to 60."""
THICKNESS = 0.02
"""Length of the path whose opacity is the mass of a cell, which caps it at 1, world units."""

Points = Float[np.ndarray, "_ 3"]


class SurfaceMatch(NamedTuple):
    """Agreement of a surface with the true one."""

    chamfer: float | None
    """Mean of both directions' mean distances to the nearest point, world units; None if there is
    no surface."""
    f_score: float
    """Harmonic mean of precision and recall (Knapitsch et al. 2017)."""
    precision: float
    """Fraction of the surface within THRESHOLD of the true one."""
    recall: float
    """Fraction of the true surface within THRESHOLD of it."""


def density_grid(scene: Scene) -> Grid | None:
    """The scene's density in the box of its occupied cells; None if nothing is there."""
    device = scene.occupancy.density.device
    try:
        return sample_density(
            lambda points: scene.query(points.to(device)).density, *scene.box(), RESOLUTION
        )
    except EmptyScene:
        return None


def surface_of(grid: Grid | None) -> Surface | None:
    """The surface that `dreamsa.export` writes, before decimation; None without one."""
    try:
        return None if grid is None else marching_cubes(find_solid(grid)[0])
    except EmptyScene:
        return None


@lru_cache(maxsize=32)
def true_points(name: str) -> Points:
    """POINTS on the surface of the toybox's object `name`.

    Marching cubes on the signed distance of the union of the parts: the surface inside other parts
    is left out, hollows that are open to the outside, such as a mug's, are part of it. A scene's
    mesh has its enclosed cavities filled likewise.
    """
    side = RADIUS + 0.02
    axis = np.linspace(-side, side, TRUE_RESOLUTION + 1)
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values = 1 - distances(build(name), lattice).reshape((TRUE_RESOLUTION + 1,) * 3)
    cell = 2 * side / TRUE_RESOLUTION
    surface = marching_cubes(Grid(values.astype(np.float32), np.full(3, -side), cell))
    return sample_points(surface, POINTS)


def sample_points(surface: Surface, count: int, seed: int = 0) -> Float[np.ndarray, "{count} 3"]:
    """Points on a mesh, uniform over its area."""
    rng = np.random.default_rng(seed)
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    face = rng.choice(len(area), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    flipped = u + v > 1
    u, v = np.where(flipped, 1 - u, u), np.where(flipped, 1 - v, v)
    return a[face] + u * (b - a)[face] + v * (c - a)[face]


def match_points(points: Points, truth: Points, threshold: float = THRESHOLD) -> SurfaceMatch:
    """Compare points of two surfaces, each in random order."""
    to_truth = KDTree(truth).query(points[:QUERIES])[0]
    from_truth = KDTree(points).query(truth[:QUERIES])[0]
    precision, recall = (float((d < threshold).mean()) for d in (to_truth, from_truth))
    total = precision + recall
    return SurfaceMatch(
        float(to_truth.mean() + from_truth.mean()) / 2,
        2 * precision * recall / total if total else 0.0,
        precision,
        recall,
    )


def match_surface(grid: Grid | None, name: str) -> SurfaceMatch:
    """Compare the mesh of a scene's density with the true surface."""
    surface = surface_of(grid)
    if surface is None:
        return SurfaceMatch(None, 0.0, 0.0, 0.0)
    return match_points(sample_points(surface, POINTS, seed=1), true_points(name))


def floaters(grid: Grid | None) -> float | None:
    """Fraction of the matter outside its largest connected part; None if there is no matter.

    Matter are the cells denser than MIN_DENSITY, neighbours if they share a corner; the mass of a
    cell is the opacity of a path of THICKNESS through it.
    """
    if grid is None:
        return None
    parts = np.asarray(ndimage.label(grid.values > MIN_DENSITY, np.ones((3, 3, 3)))[0])  # pyright: ignore[reportIndexIssue]
    opacity = -np.expm1(-THICKNESS * grid.values.astype(np.float64))
    masses = np.bincount(parts.ravel(), opacity.ravel())[1:]
    return float(1 - masses.max() / masses.sum()) if len(masses) else None
