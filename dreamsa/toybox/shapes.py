"""The objects of the toybox: unions of signed-distance primitives with their own parts and colours.

Each object is defined in its own coordinates, front along +x and z up; `build` moves and scales it
into the ball of radius 0.5. Distances: Quilez, https://iquilezles.org/articles/distfunctions/.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from math import cos, pi, radians, sin
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from dreamsa.compiled import njit, prange

Vec = tuple[float, float, float]
Colour = Vec | float
"""A fixed colour, or a factor on the object's main colour."""

ELLIPSOID, BOX, CYLINDER, CONE, TORUS, WEDGE = range(6)

RADIUS = 0.5
"""Radius of the ball around the origin that every built object touches."""

COLOURS: dict[str, Vec] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (1.00, 0.50, 0.05),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.12, 0.62, 0.18),
    "cyan": (0.10, 0.82, 0.85),
    "blue": (0.12, 0.25, 0.88),
    "purple": (0.52, 0.12, 0.72),
    "pink": (1.00, 0.55, 0.75),
    "brown": (0.38, 0.21, 0.09),
    "white": (0.96, 0.96, 0.96),
    "grey": (0.52, 0.52, 0.54),
    "ebony": (0.06, 0.06, 0.07),
}
"""The colours of captions, linear in display space."""

COLOUR_SYNONYMS = {"black": "ebony", "gray": "grey"}


@dataclass(frozen=True)
class Part:
    """One primitive.

    `size`: ellipsoid radii; box half extents and rounding; cylinder radius, half height, rounding;
    cone bottom radius, top radius, half height; torus ring and tube radius; wedge half width (y),
    height, half depth (x).
    """

    kind: int
    size: tuple[float, ...]
    at: Vec = (0.0, 0.0, 0.0)
    colour: Colour = 1.0
    turn_deg: Vec = (0.0, 0.0, 0.0)
    """Rotations about x, then y, then z."""
    blend: float = 0.0
    """Radius of the smooth union with the parts before it, in the object's own units."""
    cut: bool = False
    """Subtract this part from those before it instead of adding it."""


@dataclass(frozen=True)
class Toy:
    """An object: its parts, and its main colours if the caption names none."""

    parts: tuple[Part, ...]
    natural: tuple[Vec, ...]
    own: dict[float, Vec] = field(default_factory=dict)
    """Natural colours by factor, of parts that are no shade of the main colour (a house's roof)."""


class Solid(NamedTuple):
    """A built object: one row per primitive, for the kernels."""

    kinds: Int64[np.ndarray, "parts"]
    rows: Float64[np.ndarray, "parts 20"]  # centre 3, rotation 9, size 4, blend, cut, 2 unused
    colours: Float64[np.ndarray, "parts 3"]
    reach: float  # radius of a ball around the origin that contains it


PINK: Vec = (1.0, 0.60, 0.68)
BLACK: Vec = (0.05, 0.05, 0.05)
WOOD: Vec = (0.42, 0.25, 0.12)
YELLOW: Vec = (0.95, 0.80, 0.10)
ORANGE: Vec = (0.95, 0.50, 0.08)
CREAM: Vec = (0.93, 0.87, 0.72)
GLASS: Vec = (0.55, 0.72, 0.85)
WHITE: Vec = (0.95, 0.95, 0.95)
LEAF: Vec = (0.15, 0.55, 0.15)


def _ball(radius: float | Vec, at: Vec = (0, 0, 0), colour: Colour = 1.0, **kw) -> Part:
    return Part(ELLIPSOID, radius if isinstance(radius, tuple) else (radius,) * 3, at, colour, **kw)


def _box(half: Vec, at: Vec = (0, 0, 0), colour: Colour = 1.0, rounding=0.0, **kw) -> Part:
    return Part(BOX, (*half, rounding), at, colour, **kw)


def _rod(
    radius: float, half: float, at: Vec = (0, 0, 0), colour: Colour = 1.0, rounding=0.0, **kw
) -> Part:
    return Part(CYLINDER, (radius, half, rounding), at, colour, **kw)


def _cone(
    bottom: float, top: float, half: float, at: Vec = (0, 0, 0), colour: Colour = 1.0, **kw
) -> Part:
    return Part(CONE, (bottom, top, half), at, colour, **kw)


def _ring(ring: float, tube: float, at: Vec = (0, 0, 0), colour: Colour = 1.0, **kw) -> Part:
    return Part(TORUS, (ring, tube), at, colour, **kw)


def _both(part: Part) -> tuple[Part, Part]:
    """A part and its mirror image in y."""
    (x, y, z), (a, b, c) = part.at, part.turn_deg
    return part, replace(part, at=(x, -y, z), turn_deg=(-a, b, -c))


def _around(part: Part, count: int, phase_deg: float = 0.0) -> tuple[Part, ...]:
    """`count` copies of a part, rotated about z."""
    copies = []
    for k in range(count):
        angle = phase_deg + 360 * k / count
        c, s = cos(radians(angle)), sin(radians(angle))
        (x, y, z), (a, b, turn) = part.at, part.turn_deg
        at = (c * x - s * y, s * x + c * y, z)
        copies.append(replace(part, at=at, turn_deg=(a, b, turn + angle)))
    return tuple(copies)


def _toy(*parts: Part, **rest) -> Toy:
    return Toy(parts, **rest)


TOYS: dict[str, Toy] = {
    "rabbit": _toy(
        _ball((0.34, 0.27, 0.30), (-0.05, 0, 0)),
        _ball(0.20, (0.22, 0, 0.34), blend=0.06),
        *_both(_ball((0.05, 0.075, 0.30), (0.15, 0.09, 0.70), turn_deg=(-8, -8, 0), blend=0.02)),
        *_both(_ball((0.03, 0.045, 0.22), (0.188, 0.092, 0.70), PINK, turn_deg=(-8, -8, 0))),
        *_both(_ball((0.18, 0.09, 0.07), (0.18, 0.15, -0.25), blend=0.03)),
        _ball(0.10, (-0.40, 0, 0.02)),
        *_both(_ball(0.034, (0.385, 0.085, 0.40), BLACK)),
        _ball(0.036, (0.42, 0, 0.33), PINK),
        natural=((0.95, 0.95, 0.95), (0.62, 0.62, 0.63), (0.50, 0.34, 0.20)),
    ),
    "gas can": _toy(
        _box((0.19, 0.36, 0.36), (0, 0, 0), rounding=0.06),
        Part(TORUS, (0.14, 0.035), (0, 0.06, 0.40), BLACK, (90, 0, 90)),
        _rod(0.045, 0.24, (0, -0.36, 0.50), YELLOW, turn_deg=(38, 0, 0), rounding=0.01),
        _box((0.025, 0.22, 0.03), (0.19, 0, 0), 0.7, turn_deg=(45, 0, 0)),
        _box((0.025, 0.22, 0.03), (0.19, 0, 0), 0.7, turn_deg=(-45, 0, 0)),
        natural=((0.80, 0.08, 0.07),),
    ),
    "duck": _toy(
        _ball((0.42, 0.28, 0.24), (0, 0, 0)),
        _ball((0.16, 0.09, 0.10), (-0.38, 0, 0.12), turn_deg=(0, 35, 0), blend=0.08),
        _ball(0.19, (0.27, 0, 0.34), blend=0.10),
        _ball((0.14, 0.10, 0.035), (0.49, 0, 0.31), ORANGE),
        *_both(_ball(0.033, (0.40, 0.11, 0.41), BLACK)),
        *_both(_ball((0.22, 0.06, 0.13), (-0.06, 0.25, 0.03), 0.9, turn_deg=(0, 12, 0))),
        natural=((0.95, 0.82, 0.10),),
    ),
    "car": _toy(
        _box((0.56, 0.26, 0.13), (0, 0, 0), rounding=0.06),
        _box((0.28, 0.22, 0.12), (-0.06, 0, 0.21), GLASS, rounding=0.05),
        _box((0.22, 0.20, 0.03), (-0.06, 0, 0.33), rounding=0.03),
        *_both(_rod(0.13, 0.05, (0.33, 0.25, -0.13), BLACK, turn_deg=(90, 0, 0))),
        *_both(_rod(0.13, 0.05, (-0.33, 0.25, -0.13), BLACK, turn_deg=(90, 0, 0))),
        *_both(_ball(0.055, (0.55, 0.16, 0.03), (1.0, 0.95, 0.65))),
        natural=((0.85, 0.10, 0.10),),
    ),
    "chair": _toy(
        _box((0.30, 0.30, 0.045), (0, 0, 0)),
        _box((0.04, 0.30, 0.36), (-0.26, 0, 0.38), turn_deg=(0, -6, 0)),
        *_both(_box((0.04, 0.04, 0.24), (0.25, 0.25, -0.25), 0.85)),
        *_both(_box((0.04, 0.04, 0.24), (-0.25, 0.25, -0.25), 0.85)),
        natural=((0.45, 0.27, 0.12),),
    ),
    "mug": _toy(
        Part(TORUS, (0.17, 0.045), (0, 0.32, 0), 1.0, (90, 0, 90)),
        _rod(0.30, 0.34, (0, 0, 0), rounding=0.02),
        _rod(0.25, 0.34, (0, 0, 0.08), 0.8, cut=True),
        natural=((0.90, 0.88, 0.84),),
    ),
    "house": _toy(
        _box((0.34, 0.28, 0.24), (0, 0, -0.12)),
        Part(WEDGE, (0.36, 0.34, 0.40), (0, 0, 0.12), 0.72),
        _box((0.03, 0.075, 0.14), (0.33, 0, -0.22), WOOD),
        _box((0.07, 0.06, 0.16), (-0.16, 0.16, 0.36), 0.5),
        *_both(_box((0.08, 0.02, 0.07), (0.02, 0.275, -0.08), GLASS)),
        natural=((0.93, 0.90, 0.82),),
        own={0.72: (0.60, 0.16, 0.12), 0.5: (0.45, 0.20, 0.16)},
    ),
    "tree": _toy(
        _rod(0.075, 0.20, (0, 0, -0.42), WOOD),
        _cone(0.40, 0.10, 0.17, (0, 0, -0.13)),
        _cone(0.32, 0.07, 0.16, (0, 0, 0.10)),
        _cone(0.24, 0.00, 0.20, (0, 0, 0.36)),
        natural=((0.10, 0.50, 0.15),),
    ),
    "mushroom": _toy(
        _cone(0.14, 0.10, 0.26, (0, 0, -0.20), CREAM),
        _ball((0.42, 0.42, 0.28), (0, 0, 0.06)),
        _box((0.5, 0.5, 0.2), (0, 0, -0.16), cut=True),
        _cone(0.13, 0.10, 0.24, (0, 0, -0.20), CREAM),
        *_around(_ball((0.075, 0.075, 0.05), (0.27, 0, 0.25), WHITE, turn_deg=(0, 40, 0)), 5),
        _ball((0.085, 0.085, 0.04), (0, 0, 0.335), WHITE),
        natural=((0.85, 0.10, 0.08),),
    ),
    "snowman": _toy(
        _ball(0.30, (0, 0, -0.30)),
        _ball(0.22, (0, 0, 0.10)),
        _ball(0.16, (0, 0, 0.40)),
        _cone(0.045, 0.0, 0.11, (0.25, 0, 0.40), ORANGE, turn_deg=(0, 90, 0)),
        *_both(_ball(0.03, (0.14, 0.06, 0.46), BLACK)),
        _ball(0.032, (0.215, 0, 0.14), BLACK),
        _ball(0.032, (0.212, 0, 0.03), BLACK),
        *_both(_rod(0.022, 0.17, (0, 0.34, 0.18), WOOD, turn_deg=(-60, 0, 0))),
        natural=((0.96, 0.96, 0.96),),
    ),
    "donut": _toy(
        _ring(0.32, 0.165, (0, 0, -0.02), (0.72, 0.46, 0.22)),
        _ring(0.32, 0.160, (0, 0, 0.03)),
        *_around(_ball((0.045, 0.016, 0.016), (0.32, 0, 0.19), YELLOW, turn_deg=(0, 0, 55)), 4),
        *_around(
            _ball((0.045, 0.016, 0.016), (0.30, 0, 0.188), WHITE, turn_deg=(0, 0, -40)), 4, 45
        ),
        natural=((0.98, 0.55, 0.70),),
    ),
    "lamp": _toy(
        _rod(0.20, 0.03, (0, 0, -0.47), (0.25, 0.25, 0.27)),
        _rod(0.03, 0.34, (0, 0, -0.15), (0.25, 0.25, 0.27)),
        _cone(0.34, 0.19, 0.21, (0, 0, 0.28)),
        _rod(0.14, 0.10, (0, 0, 0.52), 0.8, cut=True),
        _ball(0.09, (0, 0, 0.44), (1.0, 0.97, 0.85)),
        natural=((0.95, 0.85, 0.35),),
    ),
    "teapot": _toy(
        Part(TORUS, (0.16, 0.04), (-0.36, 0, 0.02), 1.0, (90, 0, 0)),
        _ball((0.36, 0.36, 0.28), (0, 0, 0)),
        _cone(0.10, 0.045, 0.20, (0.42, 0, 0.06), turn_deg=(0, 52, 0), blend=0.05),
        _ball((0.20, 0.20, 0.07), (0, 0, 0.25), 0.85),
        _ball(0.06, (0, 0, 0.345), 0.6),
        natural=((0.25, 0.45, 0.75),),
    ),
    "table": _toy(
        _box((0.34, 0.52, 0.04), (0, 0, 0.20)),
        *_both(_box((0.045, 0.045, 0.24), (0.27, 0.45, -0.06), 0.8)),
        *_both(_box((0.045, 0.045, 0.24), (-0.27, 0.45, -0.06), 0.8)),
        natural=((0.62, 0.40, 0.20),),
    ),
    "boat": _toy(
        _ball((0.50, 0.20, 0.26), (0, 0, -0.10)),
        _box((0.6, 0.4, 0.2), (0, 0, 0.10), cut=True),
        _ball((0.42, 0.14, 0.12), (0, 0, -0.10), 0.6, cut=True),
        _rod(0.022, 0.34, (0.02, 0, 0.14), WOOD),
        Part(WEDGE, (0.24, 0.50, 0.014), (-0.02, 0, 0.00), WHITE, (0, 0, 90)),
        natural=((0.65, 0.35, 0.15),),
    ),
    "rocket": _toy(
        _rod(0.17, 0.30, (0, 0, 0), rounding=0.02),
        _cone(0.17, 0.0, 0.17, (0, 0, 0.46), 0.75),
        *_around(_box((0.14, 0.02, 0.13), (0.23, 0, -0.26), 0.75, turn_deg=(0, 30, 0)), 4, 45),
        _ball((0.05, 0.08, 0.08), (0.15, 0, 0.12), GLASS),
        _cone(0.13, 0.08, 0.06, (0, 0, -0.36), (0.25, 0.25, 0.27)),
        natural=((0.92, 0.92, 0.94),),
        own={0.75: (0.85, 0.12, 0.10)},
    ),
    "apple": _toy(
        _ball((0.40, 0.40, 0.36), (0, 0, 0)),
        _ball((0.13, 0.13, 0.12), (0, 0, 0.36), 0.7, cut=True),
        _rod(0.025, 0.13, (0, 0, 0.38), WOOD, turn_deg=(0, 12, 0)),
        _ball((0.14, 0.065, 0.02), (0.14, 0.02, 0.43), LEAF, turn_deg=(0, -15, 10)),
        natural=((0.80, 0.10, 0.10), (0.55, 0.75, 0.15)),
    ),
    "cactus": _toy(
        _cone(0.17, 0.22, 0.13, (0, 0, -0.42), (0.72, 0.36, 0.20)),
        _ball((0.14, 0.14, 0.46), (0, 0, 0.05)),
        _rod(0.07, 0.12, (0, 0.20, 0.02), turn_deg=(90, 0, 0), rounding=0.05),
        _rod(0.07, 0.17, (0, 0.28, 0.14), rounding=0.06),
        _rod(0.065, 0.12, (0, -0.20, 0.14), turn_deg=(90, 0, 0), rounding=0.05),
        _rod(0.065, 0.15, (0, -0.27, 0.25), rounding=0.06),
        natural=((0.20, 0.55, 0.22),),
    ),
    "hat": _toy(
        _rod(0.48, 0.025, (0, 0, -0.24), rounding=0.015),
        _cone(0.26, 0.29, 0.25, (0, 0, 0.02), 0.8),
        _cone(0.268, 0.275, 0.05, (0, 0, -0.16), (0.80, 0.12, 0.12)),
        natural=((0.30, 0.30, 0.34),),
    ),
    "airplane": _toy(
        _ball((0.52, 0.11, 0.11), (0, 0, 0)),
        _box((0.12, 0.50, 0.022), (0.04, 0, 0.0), rounding=0.02),
        _box((0.075, 0.20, 0.018), (-0.43, 0, 0.05), rounding=0.015),
        _box((0.09, 0.018, 0.13), (-0.43, 0, 0.15), 0.7, rounding=0.015, turn_deg=(0, 12, 0)),
        _ball((0.11, 0.075, 0.08), (0.26, 0, 0.07), GLASS),
        *_both(_rod(0.05, 0.10, (0.10, 0.26, -0.06), 0.7, turn_deg=(0, 90, 0), rounding=0.02)),
        natural=((0.85, 0.87, 0.90),),
        own={0.7: (0.20, 0.35, 0.75)},
    ),
    "cube": Toy((_box((0.30, 0.30, 0.30), rounding=0.015),), natural=((0.78, 0.60, 0.36),)),
    "ball": Toy((_ball(0.42),), natural=((0.90, 0.30, 0.22),)),
    "cone": Toy((_cone(0.34, 0.0, 0.42),), natural=((0.95, 0.55, 0.15),)),
}
"""Every object by its noun in captions."""


def _rotation(turn_deg: Vec) -> np.ndarray:
    a, b, c = (angle * pi / 180 for angle in turn_deg)
    about_x = np.array([[1, 0, 0], [0, cos(a), -sin(a)], [0, sin(a), cos(a)]])
    about_y = np.array([[cos(b), 0, sin(b)], [0, 1, 0], [-sin(b), 0, cos(b)]])
    about_z = np.array([[cos(c), -sin(c), 0], [sin(c), cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def colour_of(part: Part, toy: Toy, main: Vec, natural: bool) -> Vec:
    """A part's colour, given the object's main colour, natural or not."""
    if isinstance(part.colour, tuple):
        return part.colour
    if natural and part.colour in toy.own:
        return toy.own[part.colour]
    r, g, b = main
    return r * part.colour, g * part.colour, b * part.colour


@cache
def _frame(name: str) -> tuple[tuple[float, ...], float]:
    """Centre and scale that fit an object into the ball of RADIUS, from a grid of distances."""
    solid = _assemble(TOYS[name], (0.0, 0.0, 0.0), 1.0, np.ones((len(TOYS[name].parts), 3)))
    axis = np.linspace(-1.1, 1.1, 111)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    inside = grid[distances(solid, grid) < 0]
    centre = (inside.min(0) + inside.max(0)) / 2
    reach = float(np.linalg.norm(inside - centre, axis=1).max()) + 0.01  # half a grid cell
    return tuple(float(value) for value in centre), RADIUS / reach


def _assemble(toy: Toy, centre: tuple[float, ...], scale: float, colours: np.ndarray) -> Solid:
    rows = np.zeros((len(toy.parts), 20))
    for row, part in zip(rows, toy.parts, strict=True):
        row[:3] = (np.array(part.at) - centre) * scale
        row[3:12] = _rotation(part.turn_deg).T.ravel()  # world to local
        row[12 : 12 + len(part.size)] = np.array(part.size) * scale
        row[16], row[17] = part.blend * scale, part.cut
    kinds = np.array([part.kind for part in toy.parts], dtype=np.int64)
    return Solid(kinds, rows, colours, RADIUS + 0.02)


def build(name: str, colour: str | None = None, variant: int = 0) -> Solid:
    """Build an object in the ball of radius 0.5 around the origin.

    Args:
        name: A key of TOYS.
        colour: A key of COLOURS (or a synonym); None for the natural colours.
        variant: Index of the natural main colour, modulo their number.

    Raises:
        ValueError: Unknown object or colour.
    """
    if name not in TOYS:
        raise ValueError(f"The toybox has no {name!r}. It has: {', '.join(TOYS)}.")
    if colour is not None:
        colour = COLOUR_SYNONYMS.get(colour, colour)
        if colour not in COLOURS:
            raise ValueError(f"The toybox has no colour {colour!r}. It has: {', '.join(COLOURS)}.")
    toy = TOYS[name]
    main = COLOURS[colour] if colour else toy.natural[variant % len(toy.natural)]
    colours = np.array([colour_of(part, toy, main, colour is None) for part in toy.parts])
    return _assemble(toy, *_frame(name), colours)


@njit(cache=True, fastmath=False)
def _primitive(kind, row, x, y, z):
    """Signed distance of a point to a primitive; a bound for ellipsoids and wedges."""
    px, py, pz = x - row[0], y - row[1], z - row[2]
    x = row[3] * px + row[4] * py + row[5] * pz
    y = row[6] * px + row[7] * py + row[8] * pz
    z = row[9] * px + row[10] * py + row[11] * pz
    a, b, c, r = row[12], row[13], row[14], row[15]
    if kind == 0:  # ellipsoid
        k0 = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        k1 = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
        if k1 < 1e-9:
            return -min(a, min(b, c))
        return k0 * (k0 - 1.0) / k1
    if kind == 1:  # rounded box
        qx, qy, qz = abs(x) - a + r, abs(y) - b + r, abs(z) - c + r
        outside = np.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2 + max(qz, 0.0) ** 2)
        return outside + min(max(qx, max(qy, qz)), 0.0) - r
    if kind == 2:  # rounded cylinder along z: radius a, half height b, rounding c
        qx, qz = np.sqrt(x * x + y * y) - a + c, abs(z) - b + c
        return min(max(qx, qz), 0.0) + np.sqrt(max(qx, 0.0) ** 2 + max(qz, 0.0) ** 2) - c
    if kind == 3:  # capped cone along z: bottom radius a, top radius b, half height c
        q = np.sqrt(x * x + y * y)
        cax = q - min(q, a if z < 0.0 else b)
        caz = abs(z) - c
        kx, kz = b - a, 2.0 * c
        t = ((b - q) * kx + (c - z) * kz) / (kx * kx + kz * kz)
        t = min(max(t, 0.0), 1.0)
        cbx, cbz = q - b + kx * t, z - c + kz * t
        sign = -1.0 if (cbx < 0.0 and caz < 0.0) else 1.0
        return sign * np.sqrt(min(cax * cax + caz * caz, cbx * cbx + cbz * cbz))
    if kind == 4:  # torus around z: ring a, tube b
        q = np.sqrt(x * x + y * y) - a
        return np.sqrt(q * q + z * z) - b
    # wedge: isosceles triangle in (y, z), half width a, height b, extruded half depth c along x
    slope = 1.0 / np.sqrt(a * a + b * b)
    return max(max(abs(x) - c, -z), (abs(y) * b + z * a - a * b) * slope)


@njit(cache=True)
def scene_distance(kinds, rows, x, y, z):
    """(signed distance of a point, index of the part with the nearest surface)."""
    best, owner = 1e9, 0
    for i in range(len(kinds)):
        d = _primitive(kinds[i], rows[i], x, y, z)
        if rows[i, 17] > 0.5:
            if -d > best:
                best, owner = -d, i
            continue
        k = rows[i, 16]
        if d < best:
            owner = i
        if k > 0.0:
            h = max(k - abs(best - d), 0.0) / k
            best = min(best, d) - h * h * k * 0.25
        else:
            best = min(best, d)
    return best, owner


@njit(cache=True, parallel=True)
def _distances(kinds, rows, points):
    out = np.empty(len(points))
    for i in prange(len(points)):
        out[i] = scene_distance(kinds, rows, points[i, 0], points[i, 1], points[i, 2])[0]
    return out


def distances(solid: Solid, points: Float[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n"]:
    """Signed distances to an object, negative inside; at most 1.7 times the true magnitude."""
    return _distances(solid.kinds, solid.rows, np.ascontiguousarray(points, dtype=np.float64))
