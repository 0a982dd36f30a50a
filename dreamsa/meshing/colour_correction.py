"""Fit vertex colours to rendered views of the scene.

A soft field draws some colours in fog below the surface, where they shift with the view; the best
that one texture can hold is their mean over the views. So the baked colours are compared with views
from all around, and the smooth part of the difference is added to them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage, sparse

from dreamsa.meshing.bake import rasterize
from dreamsa.meshing.surface import Surface, Vectors

PRIOR_WEIGHT = 0.3
"""Weight of the baked colour, in views: a vertex that no view shows keeps it."""
DEPTH_TOLERANCE = 0.02
"""How far a visible vertex may lie behind the rasterized surface, as a fraction of its depth."""


class CalibratedView(NamedTuple):
    """An image of the object and the camera that took it."""

    pose: Float[np.ndarray, "3 4"]  # camera to world, OpenGL convention
    focal: float  # multiples of the image width
    rgb: Float[np.ndarray, "size size 3"]  # own colours, sRGB in [0, 1], without background
    opacity: Float[np.ndarray, "size size"]  # in [0, 1]


def vertex_correction(
    surface: Surface,
    normals: Vectors,
    baked: Vectors,
    views: Sequence[CalibratedView],
) -> Vectors:
    """Correction to add to the colours of the vertices.

    Args:
        normals: Outward, unit.
        baked: sRGB in [0, 1] at the vertices.
    """
    residual, total = np.zeros((len(baked), 3)), np.zeros(len(baked))
    for view in views:
        at, weight = _visibility(surface, normals, view)
        channels = np.moveaxis(view.rgb, -1, 0)
        rgb = [ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in channels]
        residual += weight[:, None] * (np.stack(rgb, 1) - baked)
        total += weight
    smoothing = _smoothing_matrix(surface)
    return smoothing @ residual / (smoothing @ total + PRIOR_WEIGHT)[:, None]


def _visibility(
    surface: Surface, normals: np.ndarray, view: CalibratedView
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates [2, n] (row, column) of the vertices in a view, and their weights [n].

    The weight is the cosine of the viewing angle, because the covered area is proportional to it;
    0 where the vertex is hidden, outside the image or more than half transparent.
    """
    size = len(view.opacity)
    local = (surface.vertices - view.pose[:, 3]) @ view.pose[:, :3]
    depth = np.maximum(-local[:, 2], 1e-6)
    x = (0.5 + view.focal * local[:, 0] / depth) * size
    y = (0.5 - view.focal * local[:, 1] / depth) * size
    z_buffer = rasterize(np.stack([x, y, 1 / depth], 1), surface.faces, size)[2]
    row, column = (np.clip(v, 0, size - 1).astype(int) for v in (y, x))
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size) & (local[:, 2] < 0)
    towards = view.pose[:, 3] - surface.vertices
    cosine = (normals * towards).sum(1) / np.linalg.norm(towards, axis=1)
    in_front = 1 / depth >= (1 - DEPTH_TOLERANCE) * z_buffer[row, column]
    visible = inside & in_front & (view.opacity[row, column] > 0.5)
    return np.stack([y, x]) - 0.5, np.where(visible, np.maximum(cosine, 0), 0)


def _smoothing_matrix(surface: Surface) -> sparse.csr_array:
    """Matrix [n, n] that spreads half of each vertex's value evenly over its neighbours."""
    n = len(surface.vertices)
    ends = surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    where = (ends.ravel(), ends[:, ::-1].ravel())
    edges = sparse.coo_array((np.ones(ends.size), where), (n, n)).tocsr()
    degree = np.maximum(edges.sum(0), 1)
    return sparse.csr_array(0.5 * (sparse.eye_array(n) + edges / degree))
