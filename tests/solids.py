"""Fields of known shapes and colours: (points, directions) -> (density, rgb)."""

import numpy as np
import torch

RED, GREEN, BLUE, SAND = (
    torch.tensor(c) for c in ((0.8, 0.1, 0.1), (0.1, 0.6, 0.2), (0.1, 0.2, 0.7), (0.84, 0.67, 0.23))
)
LOW, HIGH = np.full(3, -0.6), np.full(3, 0.6)


def field(inside, density=300.0, colour=lambda points: SAND.expand(len(points), 3)):
    """`inside(points)` is a signed distance, negative inside."""
    return lambda points, directions: (density * (inside(points) < 0).float(), colour(points))


def ball(centre=(0.0, 0.0, 0.0), radius=0.3):
    return lambda points: (points - torch.tensor(centre)).norm(dim=1) - radius


def box(low, high):
    low, high = torch.tensor(low), torch.tensor(high)
    return lambda points: torch.maximum(low - points, points - high).amax(1)


def either(*solids):
    return lambda points: torch.stack([solid(points) for solid in solids]).amin(0)


def without(solid, hole):
    return lambda points: torch.maximum(solid(points), -hole(points))


def torus(ring=0.35, tube=0.12):
    return lambda points: (
        ((points[:, :2].norm(dim=1) - ring) ** 2 + points[:, 2] ** 2).sqrt() - tube
    )


def six_sides(points):
    """Red in front (+x), green on the left (+y), blue on top (+z), sand elsewhere."""
    colours = SAND.repeat(len(points), 1)
    centred = (points - torch.tensor([0.1, -0.05, 0.15])) / torch.tensor([0.4, 0.3, 0.15])
    for axis, colour in enumerate((RED, GREEN, BLUE)):
        colours[centred[:, axis] >= centred.abs().amax(1)] = colour
    return colours


BRICK = field(box((-0.3, -0.35, 0.0), (0.5, 0.25, 0.3)), colour=six_sides)
"""0.8 long (x), 0.6 wide (y), 0.3 high (z), centred at (0.1, -0.05, 0.15)."""
