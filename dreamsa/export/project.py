"""Colours corrected by pictures: what a surface shows on average should be what the scene shows.

A texture that is baked along a few lines of sight knows the colours near each point, but a soft field draws some of them in fog a way below the
surface, where they shift against it from view to view. The best that one texture can hold is the mean over the views. So the surface is looked at
in pictures of the scene from all around, and the smooth part of the difference is added to what was baked; the fine part stays.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage, sparse

from dreamsa.export import kernels
from dreamsa.export.mesh import Surface

ROUNDS = 1
"""How often what was seen at a vertex is shared with its neighbours."""
DOUBT = 0.3
"""Views that say "as it was baked", added to what was seen: a vertex that nobody sees keeps its colour."""
HIDDEN = 0.02
"""How much farther than what is drawn at its pixel a vertex may be and still count as seen, a share of the distance."""


class Photograph(NamedTuple):
    """A picture of the scene and the camera that took it."""

    pose: Float[np.ndarray, "3 4"]  # camera to world, looking along -z
    focal: float  # in picture widths
    rgb: Float[np.ndarray, "size size 3"]  # the object's own colours, sRGB in [0, 1], no background in them
    opacity: Float[np.ndarray, "size size"]  # in [0, 1]


def correction(
    surface: Surface, normals: Float[np.ndarray, "n 3"], baked: Float[np.ndarray, "n 3"], photographs: Sequence[Photograph]
) -> Float[np.ndarray, "n 3"]:
    """What to add to the colours of the vertices, and by interpolation to those between them.

    Args:
        normals: Outward, unit.
        baked: sRGB in [0, 1] at the vertices.
    """
    missing, weight = np.zeros((len(baked), 3)), np.zeros(len(baked))
    for photograph in photographs:
        at, share = _seen(surface, normals, photograph)
        colours = [ndimage.map_coordinates(photograph.rgb[:, :, k], at, order=1, mode="nearest") for k in range(3)]
        missing += share[:, None] * (np.stack(colours, 1) - baked)
        weight += share
    spread = _neighbours(surface)
    for _ in range(ROUNDS):
        missing, weight = spread @ missing, spread @ weight
    return missing / (weight + DOUBT)[:, None]


def _seen(surface: Surface, normals: np.ndarray, photograph: Photograph) -> tuple[np.ndarray, np.ndarray]:
    """Where each vertex is on a picture [2, n] (row, column), and how much it counts there [n]: the cosine of the angle at which it is seen, as that
    is its share of the pixels; nothing where it is hidden, outside, or more than half transparent."""
    size = len(photograph.opacity)
    seen = (surface.vertices - photograph.pose[:, 3]) @ photograph.pose[:, :3]
    depth = np.maximum(-seen[:, 2], 1e-6)
    x, y = ((0.5 + sign * photograph.focal * seen[:, axis] / depth) * size for axis, sign in ((0, 1), (1, -1)))
    nearness = np.full((size, size), -np.inf, np.float32)
    kernels.rasterize(
        np.stack([x, y, 1 / depth], 1), surface.faces, np.full((size, size), -1, np.int32), np.zeros((size, size, 3), np.float32), nearness
    )
    row, column = (np.clip(v, 0, size - 1).astype(int) for v in (y, x))
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size) & (seen[:, 2] < 0)
    towards = photograph.pose[:, 3] - surface.vertices
    cosine = (normals * towards).sum(1) / np.linalg.norm(towards, axis=1)
    visible = inside & (1 / depth >= (1 - HIDDEN) * nearness[row, column]) & (photograph.opacity[row, column] > 0.5)
    return np.stack([y, x]) - 0.5, np.where(visible, np.maximum(cosine, 0), 0)


def _neighbours(surface: Surface) -> sparse.csr_array:
    """A matrix [n, n] that gives half of what a vertex has to those that share an edge with it, in equal parts."""
    n = len(surface.vertices)
    ends = surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    edges = sparse.coo_array((np.ones(2 * len(ends)), (ends.ravel(), ends[:, ::-1].ravel())), (n, n)).tocsr()
    given = np.maximum(edges.sum(0), 1)
    return sparse.csr_array(0.5 * (sparse.eye_array(n) + edges / given))
