"""From a density to a closed surface. A scene is known only as a function of points; nothing here needs a GPU or OpenGL.

Score distillation leaves soft fields: fog of density 10 that is opaque where it is thick. No level of the *density* has the
outline that people see. What they see is where a straight line of sight is more than half opaque, so the surface is taken
from the *thinnest line of sight* through each point: the least optical depth, over many directions, of the lines that pass
through it. Its level near ln 2 is the visual hull of the half-opaque silhouettes (Laurentini 1994); the density, at the highest
level that keeps the outlines, carves what no outline shows, such as the inside of a mug.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage
from torch import Tensor

from dreamsa.export import kernels

DensityFn = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]
"""points in world units -> density in 1/world unit."""

HALF = float(np.log(2))
"""Optical depth of a line that is half opaque."""
DARK = 4 * HALF
"""Optical depths beyond it are all the same; else the pictures of hard objects would bleed over their rims."""
DIRECTIONS = 64
SIGHT_CELLS = 128
"""Lines of sight are followed on a grid of at most this many cells a side: they change slowly."""
FLOATER = 0.01
"""Parts smaller than this share of the largest are left out."""
OUTLINES = 24
"""Directions from which outlines are compared."""
SIGHT_LEVELS = (0.8 * HALF, 1.1 * HALF)
"""Where the level of the thinnest sight is looked for. Hard objects agree as well far above ln 2, with their rims gnawed off."""
CLEAR = 0.25
"""How far below the highest level that keeps the outlines the density's level lies: at that level itself soft walls have pits."""
CHUNK = 2**17


class EmptyScene(ValueError):
    """There is nothing that a mesh could show."""


class Grid(NamedTuple):
    """Values on a lattice of cubes; the outermost layer is empty, so that every level set is closed."""

    values: Float32[np.ndarray, "x y z"]
    origin: Float[np.ndarray, "3"]  # world position of values[0, 0, 0]
    cell: float  # world units between neighbours


class Surface(NamedTuple):
    vertices: Float[np.ndarray, "n 3"]  # world units
    faces: Int[np.ndarray, "m 3"]  # counter-clockwise seen from outside


class Level(NamedTuple):
    sight: float
    """Least optical depth of a line of sight through a solid point."""
    density: float
    """Least density of a solid point, 1/world unit."""
    agreement: float
    """Intersection over union of the outlines at these levels with the half-opaque ones."""


@torch.no_grad()
def sample_density(density: DensityFn, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"], resolution: int) -> Grid:
    """The density in a box, `resolution` cells along its longest side.

    Raises:
        EmptyScene: The box is empty or the density is not finite.
    """
    extent = np.asarray(high, float) - np.asarray(low, float)
    if not (extent > 0).all():
        raise EmptyScene("there is nothing in it: no cell of its occupancy grid is occupied")
    cell = float(extent.max() / resolution)
    counts = np.ceil(extent / cell - 1e-6).astype(int) + 1
    axes = [torch.from_numpy(low[k] + cell * np.arange(counts[k])).float() for k in range(3)]
    values = np.zeros(counts + 2, np.float32)
    slab = max(CHUNK // int(counts[1] * counts[2]), 1)
    for start in range(0, counts[0], slab):
        points = torch.stack(torch.meshgrid(axes[0][start : start + slab], axes[1], axes[2], indexing="ij"), -1)
        found = density(points.reshape(-1, 3)).cpu().numpy().reshape(points.shape[:3])
        values[1 + start : 1 + start + len(found), 1:-1, 1:-1] = found
    if not np.isfinite(values).all():
        raise EmptyScene("its density holds values that are not finite")
    return Grid(values, np.asarray(low, float) - cell, cell)


def hemisphere(count: int) -> Float[np.ndarray, "{count} 3"]:
    """Unit vectors spread evenly over the upper half (a Fibonacci lattice): lines of sight have no sense."""
    i = np.arange(count) + 0.5
    z = i / count
    turn = np.pi * (1 + 5**0.5) * i
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1)


class Look(NamedTuple):
    """The object along one direction, on a picture whose pixels are cells."""

    at: Float32[np.ndarray, "n 2"]  # where each point is on it; inside by at least one pixel
    depth: Float32[np.ndarray, "u v"]  # optical depth of the line through each pixel, at most DARK


def looks(grid: Grid, some: Bool[np.ndarray, "x y z"], directions: int) -> Iterator[Look]:
    """The points of `some` from all around, in parallel projection."""
    points, thickness = np.argwhere(some).astype(np.float32), grid.values[some] * np.float32(grid.cell)
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in some.shape), indexing="ij"), -1).reshape(8, 3)
    for towards in hemisphere(directions) if len(points) else ():
        right = np.cross(towards, (0.0, 0.0, 1.0) if towards[2] < 0.9 else (1.0, 0.0, 0.0))
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(towards, right)], 1)
        low, high = (corners @ axes).min(0) - 3, (corners @ axes).max(0) + 3
        at = points @ axes.astype(np.float32) - low.astype(np.float32)
        depth = np.zeros(np.ceil(high - low).astype(int), np.float32)
        kernels.splat(at, thickness, depth)
        yield Look(at, ndimage.gaussian_filter(np.minimum(depth, DARK), 0.7))


def _seen(values: np.ndarray, look: Look) -> np.ndarray:
    """The largest of the points' values behind each pixel; pixels that fall between points take their neighbours'."""
    peak = np.zeros(look.depth.shape, np.float32)
    kernels.peak(look.at, values, peak)
    return ndimage.grey_closing(peak, 3)


def _some(grid: Grid) -> np.ndarray:
    return grid.values * grid.cell > 2e-3


def thinnest_sight(grid: Grid, directions: int = DIRECTIONS) -> Float32[np.ndarray, "x y z"]:
    """Per point, the least optical depth of the lines through it; 0 where the density is next to nothing."""
    some = _some(grid)
    out = np.full(int(some.sum()), np.inf, np.float32)
    for look in looks(grid, some, directions):
        kernels.least(look.at, look.depth, out)
    sight = np.zeros_like(grid.values)
    sight[some] = out
    return sight


def find_level(grid: Grid, sight: Float32[np.ndarray, "x y z"]) -> Level:
    """Where the surface is: the levels whose outlines agree best with the half-opaque ones.

    A line meets {values >= level} just where its largest value reaches the level, so that one sort tries every level.

    Raises:
        EmptyScene: No line is half opaque.
    """
    some, most = _some(grid), 0.0
    opaque, peaks = [], []
    for look in looks(grid, some, OUTLINES):
        opaque.append((look.depth > HALF).ravel())
        peaks.append(_seen(sight[some], look).ravel())
        most = max(most, float(look.depth.max()))
    if not any(one.any() for one in opaque):
        raise EmptyScene(f"no line of sight through it is more than half opaque (the most is {-np.expm1(-most):.0%})")
    half = np.concatenate(opaque)
    theta = float(np.clip(_best(np.concatenate(peaks), half)[0], *SIGHT_LEVELS))
    inside = np.where(sight >= theta, grid.values, 0)[some]
    density, agreement = _best(np.concatenate([_seen(inside, look).ravel() for look in looks(grid, some, OUTLINES)]), half)
    return Level(theta, CLEAR * density, agreement)


def _best(peaks: np.ndarray, opaque: np.ndarray) -> tuple[float, float]:
    """(The highest of the levels whose outlines agree best, that agreement)."""
    order = np.argsort(-peaks, kind="stable")
    order = order[peaks[order] > 0]
    both = np.cumsum(opaque[order])
    agreement = both / (opaque.sum() + np.arange(1, len(order) + 1) - both)
    first = int(np.argmax(agreement))
    return float(peaks[order[first]]), float(agreement[first])


def grow(grid: Grid, solid: Float32[np.ndarray, "x y z"]) -> Float32[np.ndarray, "x y z"]:
    """Where fog is half opaque from most sides but not from all, the hull ends too early: what adds more to the outlines that
    are missing than beyond them, in steps from the clearest cases on. 0 elsewhere; 1 is the surface, as in `solid`."""
    some = _some(grid)
    inside = (solid >= 1)[some]
    added = np.zeros_like(inside)
    for share in (0.2, 0.4, 0.6, 0.8):
        gain, cost = np.zeros(len(inside), np.int32), np.zeros(len(inside), np.int32)
        for look in looks(grid, some, OUTLINES):
            covered, opaque = _seen((inside | added).astype(np.float32), look) > 0, look.depth > HALF
            pixel = tuple((look.at + 0.5).astype(np.int32).T)
            gain += (opaque & ~covered)[pixel]
            cost += (~opaque & ~covered)[pixel]
        added |= (gain > 0) & (cost <= share * gain)
    place = np.zeros(solid.shape, bool)
    place[some] = added
    smooth = ndimage.gaussian_filter(np.where(place, 1.5, np.minimum(solid, 2)), 0.8)
    return np.where(ndimage.binary_dilation(place, iterations=2), smooth, 0).astype(np.float32)


def find_solid(grid: Grid) -> tuple[Grid, Level]:
    """A function that is 1 on the surface and larger inside, without floaters and enclosed hollows, which nobody sees.

    Raises:
        EmptyScene: There is nothing opaque.
    """
    step = -(-max(grid.values.shape) // (SIGHT_CELLS + 4))
    coarse = _coarser(grid, step)
    sight = thinnest_sight(coarse)
    level = find_level(coarse, sight)
    grown = grow(coarse, np.minimum(sight / level.sight, coarse.values / level.density))
    sight, grown = (_finer(values, step, grid.values.shape) for values in (sight, grown))
    values = np.maximum(np.minimum(sight / level.sight, grid.values / level.density), grown)
    values = _clean(np.minimum(values, 2).astype(np.float32))
    near = np.abs(values - 1) < 0.03  # vertices that fall together on a lattice point would tear the mesh where they are merged
    values[near] = np.where(values[near] >= 1, 1.03, 0.97)
    return Grid(values, grid.origin, grid.cell), level


def _coarser(grid: Grid, step: int) -> Grid:
    """Means over step^3 points, with an empty layer around."""
    if step == 1:
        return grid
    padded = np.pad(grid.values, [(0, -n % step) for n in grid.values.shape])
    x, y, z = (n // step for n in padded.shape)
    means = np.pad(padded.reshape(x, step, y, step, z, step).mean((1, 3, 5)), 1)
    return Grid(means, grid.origin + grid.cell * ((step - 1) / 2 - step), grid.cell * step)


def _finer(values: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `_coarser`, by linear interpolation."""
    if step == 1:
        return values
    axes = [(np.arange(n, dtype=np.float32) - (step - 1) / 2) / step + 1 for n in shape]
    fine = np.empty(shape, np.float32)
    for x, slab in zip(axes[0], fine, strict=True):  # one layer at a time: the coordinates of all would fill the memory
        at = np.stack(np.meshgrid([x], axes[1], axes[2], indexing="ij"))[:, 0]
        ndimage.map_coordinates(values, at, order=1, output=slab)
    return fine


def _clean(values: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(values >= 1, np.ones((3, 3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        raise EmptyScene("nothing in it is solid")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    values[(parts > 0) & (sizes < FLOATER * sizes.max())[parts]] = 0
    inside = values >= 1
    values[np.asarray(ndimage.binary_fill_holes(inside)) & ~inside] = 2
    return values


def march(grid: Grid, level: float = 1.0) -> Surface:
    """The level set as triangles that look outward (marching cubes, Lewiner et al. 2003).

    Raises:
        EmptyScene: There is none.
    """
    from skimage.measure import marching_cubes

    if not grid.values.min() < level < grid.values.max():
        raise EmptyScene("nothing in it is solid")
    vertices, faces, _, _ = marching_cubes(grid.values, level)
    surface = Surface(vertices * grid.cell + grid.origin, faces.astype(np.int64))
    if volume(surface) < 0:
        surface = Surface(surface.vertices, np.ascontiguousarray(surface.faces[:, ::-1]))
    return check(surface)


def volume(surface: Surface) -> float:
    """Signed: negative when the faces look inward."""
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def check(surface: Surface) -> Surface:
    """The surface itself, when it can be shown.

    Raises:
        EmptyScene: It has no faces or no inside, is inside out, or is not finite.
    """
    if not len(surface.faces):
        raise EmptyScene("its mesh has no faces")
    if not np.isfinite(surface.vertices).all():
        raise EmptyScene("its mesh has corners that are not finite")
    if not volume(surface) > 0:
        raise EmptyScene(f"its mesh is inside out (signed volume {volume(surface):.2g})")
    return surface


def decimate(surface: Surface, faces: int) -> Surface:
    """At most `faces` faces, by collapsing the edges that change the shape least (Garland and Heckbert 1997)."""
    if len(surface.faces) <= faces:
        return surface
    import fast_simplification

    triangles = surface.faces.astype(np.int32)

    def simplified(attempt: int) -> Surface:
        order = np.random.default_rng(attempt).permutation(len(triangles)) if attempt else slice(None)
        found = fast_simplification.simplify(surface.vertices, triangles[order], target_count=faces, agg=5)[:2]
        return Surface(np.asarray(found[0], np.float64), np.asarray(found[1], np.int64))

    first = simplified(0)
    if not is_closed(first):  # two sheets came to touch along an edge; with the faces in another order they mostly do not
        first = next((found for found in map(simplified, range(1, 9)) if is_closed(found)), first)
    return check(first)


def is_closed(surface: Surface) -> bool:
    """Whether each edge joins just two faces."""
    edges = np.sort(surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    return bool((np.unique(edges[:, 0] * len(surface.vertices) + edges[:, 1], return_counts=True)[1] == 2).all())


def vertex_normals(surface: Surface) -> Float[np.ndarray, "n 3"]:
    """Outward unit normals, the mean of the faces around weighted by area; up where a vertex has none."""
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    total = np.stack([np.bincount(surface.faces.ravel(), np.repeat(normal[:, k], 3), len(surface.vertices)) for k in range(3)], 1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-20, total / np.maximum(length, 1e-20), (0.0, 0.0, 1.0))
