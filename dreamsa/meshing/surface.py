"""Closed triangle meshes: marching cubes, decimation, checks and normals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dreamsa.meshing.hull import EmptyScene, Grid

Vectors = Float[np.ndarray, "n 3"]


class Surface(NamedTuple):
    """A triangle mesh."""

    vertices: Vectors  # world units
    faces: Int[np.ndarray, "m 3"]  # counter-clockwise seen from outside


def marching_cubes(grid: Grid) -> Surface:
    """Triangulate the level set 1, faces outward (Lewiner et al. 2003).

    Raises:
        EmptyScene: The level set is empty.
    """
    from skimage import measure

    if not grid.values.min() < 1 < grid.values.max():
        raise EmptyScene("no part of it is solid")
    vertices, faces, _, _ = measure.marching_cubes(grid.values, 1.0)
    surface = Surface(vertices * grid.cell + grid.origin, faces.astype(np.int64))
    if volume(surface) < 0:
        surface = surface._replace(faces=np.ascontiguousarray(surface.faces[:, ::-1]))
    return check(surface)


def volume(surface: Surface) -> float:
    """Signed volume in cubic world units: negative if the faces point inward."""
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def check(surface: Surface) -> Surface:
    """Return the surface if it is valid.

    Raises:
        EmptyScene: It has no faces, no volume or inward faces, or its vertices are not finite.
    """
    if not len(surface.faces):
        raise EmptyScene("its mesh has no faces")
    if not np.isfinite(surface.vertices).all():
        raise EmptyScene("its mesh has vertices that are not finite")
    if not volume(surface) > 0:
        raise EmptyScene(f"its mesh is inside out (signed volume {volume(surface):.2g})")
    return surface


def decimate(surface: Surface, max_faces: int) -> Surface:
    """Reduce to at most `max_faces` faces by quadric edge collapse (Garland and Heckbert 1997)."""
    if len(surface.faces) <= max_faces:
        return surface
    import fast_simplification

    triangles = surface.faces.astype(np.int32)

    def simplify(attempt: int) -> Surface:
        rng = np.random.default_rng(attempt)
        vertices, faces = fast_simplification.simplify(
            surface.vertices,
            rng.permutation(triangles) if attempt else triangles,
            target_count=max_faces,
            agg=5,
        )[:2]
        return Surface(np.asarray(vertices, np.float64), np.asarray(faces, np.int64))

    first = simplify(0)
    if not is_closed(first):  # two sheets touch along an edge; another order mostly avoids it
        first = next((other for other in map(simplify, range(1, 9)) if is_closed(other)), first)
    return check(first)


def is_closed(surface: Surface) -> bool:
    """Whether every edge joins exactly two faces."""
    edges = np.sort(surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    keys = edges[:, 0] * len(surface.vertices) + edges[:, 1]
    return bool((np.unique(keys, return_counts=True)[1] == 2).all())


def vertex_normals(surface: Surface) -> Vectors:
    """Outward unit normals, area-weighted means over adjacent faces; up where they cancel."""
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    corners, n = surface.faces.ravel(), len(surface.vertices)
    total = np.stack([np.bincount(corners, np.repeat(v, 3), n) for v in normal.T], 1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-20, total / np.maximum(length, 1e-20), (0.0, 0.0, 1.0))
