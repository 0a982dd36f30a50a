"""Visual hull of a density: an implicit function whose outlines are those of the renders.

Score distillation leaves soft fields: fog of density 10, opaque where it is thick. No level set of
the *density* has the outlines of the renders, in which an object ends where a line of sight is half
opaque. So the surface is taken from the *thinnest line of sight* through each point: the minimum
optical depth over the lines that pass through it. Its level near ln 2 is the visual hull of the
half-opaque silhouettes (Laurentini 1994). Within it, a level of the density carves concavities that
no outline shows, such as the inside of a mug.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from scipy import ndimage
from torch import Tensor

from dreamsa.meshing import kernels_numba as kernels

DensityFn = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]
"""points in world units -> density in 1/world unit."""

KeptFn = Callable[[Float[Tensor, "n 3"]], Bool[Tensor, "n"]]
"""points -> whether an edit had to keep the scene there."""

Volume = Float32[np.ndarray, "x y z"]

HALF_OPAQUE = float(np.log(2))
"""Optical depth of a half-opaque line."""
MAX_OPTICAL_DEPTH = 4 * HALF_OPAQUE
"""Projections are clipped here; otherwise the blur would carry hard objects over their rims."""
DIRECTIONS = 64
"""Lines of sight through each point."""
OUTLINE_DIRECTIONS = 24
"""Directions from which outlines are compared."""
MAX_SIGHT_CELLS = 128
"""Maximum cells per side of the grid for lines of sight; optical depth is smooth."""
OPTICAL_DEPTH_RANGE = (0.8 * HALF_OPAQUE, 1.1 * HALF_OPAQUE)
"""Of the threshold. Far above ln 2 hard objects fit as well, but erode."""
DENSITY_MARGIN = 0.25
"""Threshold of the density over the highest that keeps the outlines, at which soft walls pit."""
MIN_PART = 0.01
"""Minimum size of a part, as a fraction of the largest part's."""
CHUNK = 2**17


class EmptyScene(ValueError):
    """The scene has no surface; the message is a clause that gives the reason."""


class Grid(NamedTuple):
    """Values on a cubic lattice, its outermost layer empty so that every level set is closed."""

    values: Volume
    origin: Float[np.ndarray, "3"]  # world position of values[0, 0, 0]
    cell: float  # world units between neighbours


class Level(NamedTuple):
    """Thresholds for a point to be solid."""

    optical_depth: float
    """Minimum over its lines of sight."""
    density: float
    """1/world unit."""
    iou: float
    """Intersection over union of the outlines at these thresholds with the half-opaque ones."""


class Projection(NamedTuple):
    """Parallel projection of a grid, one pixel per cell."""

    pixels: Float32[np.ndarray, "n 2"]  # image position of each point, at least one pixel inside
    optical_depth: Float32[np.ndarray, "u v"]  # of each pixel's line, at most MAX_OPTICAL_DEPTH


@torch.no_grad()
def sample_density(
    density: DensityFn,
    low: Float[np.ndarray, "3"],
    high: Float[np.ndarray, "3"],
    resolution: int,
    beside: Grid | None = None,
) -> Grid:
    """Sample the density in a box, with `resolution` cells along its longest side.

    Args:
        beside: A grid whose lattice is continued instead, as far as needed in each direction.

    Raises:
        EmptyScene: The box is empty or the density is not finite.
    """
    extent = np.asarray(high, float) - np.asarray(low, float)
    if not (extent > 0).all():
        raise EmptyScene("no cell of its occupancy grid is occupied")
    cell = float(extent.max() / resolution)
    low, first = np.asarray(low, float), np.zeros(3, int)
    if beside is not None:
        cell, inner = beside.cell, beside.origin + beside.cell
        first = np.minimum(np.floor((low - inner) / cell + 1e-6).astype(int), 0)
        high = np.maximum(high, inner + cell * (np.array(beside.values.shape) - 3))
        low, extent = inner, np.asarray(high, float) - (inner + cell * first)
    counts = np.ceil(extent / cell - 1e-6).astype(int) + 1
    axes = [
        torch.from_numpy(low[k] + cell * (first[k] + np.arange(counts[k]))).float()
        for k in range(3)
    ]
    values = np.zeros(counts + 2, np.float32)
    layers = max(CHUNK // int(counts[1] * counts[2]), 1)
    for start in range(0, counts[0], layers):
        points = torch.cartesian_prod(axes[0][start : start + layers], *axes[1:])
        slab = density(points).cpu().numpy().reshape(-1, *counts[1:])
        values[1 + start : 1 + start + len(slab), 1:-1, 1:-1] = slab
    if not np.isfinite(values).all():
        raise EmptyScene("its density has values that are not finite")
    return Grid(values, low + cell * first - cell, cell)


def keep_solid(new: Grid, old: Grid, kept: KeptFn) -> Grid:
    """The solid `new` where it may differ, and `old`, on a part of the same lattice, elsewhere."""
    offset = np.rint((old.origin - new.origin) / new.cell).astype(int)
    here = tuple(slice(k, k + n) for k, n in zip(offset, old.values.shape, strict=True))
    spread = np.zeros_like(new.values)
    spread[here] = old.values
    axes = [torch.from_numpy(new.origin[k] + new.cell * np.arange(n)).float()
            for k, n in enumerate(new.values.shape)]  # fmt: skip
    planes = (kept(torch.cartesian_prod(x[None], *axes[1:])) for x in axes[0])
    mask = torch.stack([plane.cpu() for plane in planes]).numpy().reshape(new.values.shape)
    return new._replace(values=np.where(mask, spread, new.values))


def hemisphere_directions(count: int) -> Float[np.ndarray, "{count} 3"]:
    """Unit vectors of a Fibonacci lattice on the upper hemisphere."""
    i = np.arange(count) + 0.5
    z = i / count
    azimuth = np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], 1)


def projections(
    grid: Grid, mask: Bool[np.ndarray, "x y z"], directions: int
) -> Iterator[Projection]:
    """Project the points of `mask` along directions spread evenly over the hemisphere."""
    points = np.argwhere(mask).astype(np.float32)
    thickness = grid.values[mask] * np.float32(grid.cell)
    corners = np.array(list(product(*((0, n - 1) for n in mask.shape))))
    for direction in hemisphere_directions(directions) if len(points) else ():
        right = np.cross(direction, (0.0, 0.0, 1.0) if direction[2] < 0.9 else (1.0, 0.0, 0.0))
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(direction, right)], 1)
        low, high = (corners @ axes).min(0) - 3, (corners @ axes).max(0) + 3
        pixels = points @ axes.astype(np.float32) - low.astype(np.float32)
        depth = np.zeros(np.ceil(high - low).astype(int), np.float32)
        kernels.splat_sum(pixels, thickness, depth)
        yield Projection(pixels, ndimage.gaussian_filter(np.minimum(depth, MAX_OPTICAL_DEPTH), 0.7))


def _max_projection(values: np.ndarray, projection: Projection) -> np.ndarray:
    """Maximum intensity projection of the points' values; a closing fills pixels between points."""
    image = np.zeros(projection.optical_depth.shape, np.float32)
    kernels.splat_max(projection.pixels, values, image)
    return ndimage.grey_closing(image, 3)


def _nonempty(grid: Grid) -> np.ndarray:
    """Mask of the cells with more than a negligible optical depth."""
    return grid.values * grid.cell > 2e-3


def min_optical_depth(grid: Grid) -> Volume:
    """Optical depth of the thinnest line through each point; 0 where the density is negligible."""
    mask = _nonempty(grid)
    minimum = np.full(int(mask.sum()), np.inf, np.float32)
    for projection in projections(grid, mask, DIRECTIONS):
        kernels.gather_min(projection.pixels, projection.optical_depth, minimum)
    result = np.zeros_like(grid.values)
    result[mask] = minimum
    return result


def find_level(grid: Grid, optical_depth: Volume) -> Level:
    """Find the thresholds whose outlines agree best with the half-opaque ones.

    A line meets {values >= threshold} exactly where its maximum reaches the threshold, so that one
    sort evaluates all thresholds. `optical_depth` is that of the thinnest line through each point.

    Raises:
        EmptyScene: No line is more than half opaque.
    """
    mask, max_depth = _nonempty(grid), 0.0
    opaque, maxima = [], []
    for projection in projections(grid, mask, OUTLINE_DIRECTIONS):
        opaque.append((projection.optical_depth > HALF_OPAQUE).ravel())
        maxima.append(_max_projection(optical_depth[mask], projection).ravel())
        max_depth = max(max_depth, float(projection.optical_depth.max()))
    if not any(outline.any() for outline in opaque):
        raise EmptyScene(
            "no line of sight through it is more than half opaque "
            f"(the maximum is {-np.expm1(-max_depth):.0%})"
        )
    threshold = float(np.clip(_best_threshold(maxima, opaque)[0], *OPTICAL_DEPTH_RANGE))
    inside = np.where(optical_depth >= threshold, grid.values, 0)[mask]
    views = projections(grid, mask, OUTLINE_DIRECTIONS)
    density, iou = _best_threshold([_max_projection(inside, p).ravel() for p in views], opaque)
    return Level(threshold, DENSITY_MARGIN * density, iou)


def _best_threshold(images: list[np.ndarray], outlines: list[np.ndarray]) -> tuple[float, float]:
    """The highest threshold of the images with the best IoU with the outlines, and that IoU."""
    maxima, opaque = np.concatenate(images), np.concatenate(outlines)
    order = np.argsort(-maxima, kind="stable")
    order = order[maxima[order] > 0]
    intersection = np.cumsum(opaque[order])
    iou = intersection / (opaque.sum() + np.arange(1, len(order) + 1) - intersection)
    first = int(np.argmax(iou))
    return float(maxima[order[first]]), float(iou[first])


def grow(grid: Grid, solid: Volume) -> Volume:
    """Grow the hull where fog is half opaque from most sides only.

    Adds the points that cover more missing outline than area beyond it, the clearest cases first.

    Returns:
        As `solid`: 1 on the surface, more inside; 0 away from the added points.
    """
    mask = _nonempty(grid)
    inside = (solid >= 1)[mask]
    added = np.zeros_like(inside)
    for max_cost in (0.2, 0.4, 0.6, 0.8):  # per gain
        gain, cost = np.zeros(len(inside), np.int32), np.zeros(len(inside), np.int32)
        for projection in projections(grid, mask, OUTLINE_DIRECTIONS):
            covered = _max_projection((inside | added).astype(np.float32), projection) > 0
            opaque = projection.optical_depth > HALF_OPAQUE
            pixel = tuple((projection.pixels + 0.5).astype(np.int32).T)
            gain += (opaque & ~covered)[pixel]
            cost += (~opaque & ~covered)[pixel]
        added |= (gain > 0) & (cost <= max_cost * gain)
    grown = np.zeros(solid.shape, bool)
    grown[mask] = added
    smooth = ndimage.gaussian_filter(np.where(grown, 1.5, np.minimum(solid, 2)), 0.8)
    return np.where(ndimage.binary_dilation(grown, iterations=2), smooth, 0).astype(np.float32)


def find_solid(grid: Grid) -> tuple[Grid, Level]:
    """Implicit function of the object: 1 on the surface, larger inside.

    Floaters are removed and enclosed cavities filled.

    Raises:
        EmptyScene: Nothing is opaque.
    """
    step = -(-max(grid.values.shape) // (MAX_SIGHT_CELLS + 4))
    coarse = _downsample(grid, step)
    depth = min_optical_depth(coarse)
    level = find_level(coarse, depth)
    grown = grow(coarse, np.minimum(depth / level.optical_depth, coarse.values / level.density))
    depth, grown = (_upsample(values, step, grid.values.shape) for values in (depth, grown))
    values = np.maximum(np.minimum(depth / level.optical_depth, grid.values / level.density), grown)
    values = _remove_floaters(np.minimum(values, 2).astype(np.float32))
    near = np.abs(values - 1) < 0.03  # vertices that coincide would tear the merged mesh
    values[near] = np.where(values[near] >= 1, 1.03, 0.97)
    return Grid(values, grid.origin, grid.cell), level


def _downsample(grid: Grid, step: int) -> Grid:
    """Average blocks of step^3 points, and surround them with an empty layer."""
    if step == 1:
        return grid
    padded = np.pad(grid.values, [(0, -n % step) for n in grid.values.shape])
    x, y, z = (n // step for n in padded.shape)
    means = np.pad(padded.reshape(x, step, y, step, z, step).mean((1, 3, 5)), 1)
    return Grid(means, grid.origin + grid.cell * ((step - 1) / 2 - step), grid.cell * step)


def _upsample(values: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Invert `_downsample` by linear interpolation."""
    if step == 1:
        return values
    axes = [(np.arange(n, dtype=np.float32) - (step - 1) / 2) / step + 1 for n in shape]
    fine = np.empty(shape, np.float32)
    for x, layer in zip(axes[0], fine, strict=True):  # all coordinates at once exhaust memory
        at = np.stack(np.meshgrid([x], axes[1], axes[2], indexing="ij"))[:, 0]
        ndimage.map_coordinates(values, at, order=1, output=layer)
    return fine


def _remove_floaters(values: np.ndarray) -> np.ndarray:
    """Remove small parts and fill enclosed cavities, in place."""
    parts, count = ndimage.label(values >= 1, np.ones((3, 3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        raise EmptyScene("no part of it is solid")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    values[(parts > 0) & (sizes < MIN_PART * sizes.max())[parts]] = 0
    inside = values >= 1
    values[np.asarray(ndimage.binary_fill_holes(inside)) & ~inside] = 2
    return values
