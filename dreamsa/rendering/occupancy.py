"""Occupancy grid: empty cells are not sampled (Instant-NGP, arXiv:2201.05989, sec. 5.2)."""

from collections.abc import Callable
from copy import copy
from functools import reduce

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

DensityFn = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]
"""points -> density."""

CHUNK = 2**16
"""Points evaluated at a time."""


class OccupancyGrid:
    """Cells over the cube [-radius, radius]^3, each with a decayed maximum of its density."""

    density: Float32[Tensor, "n n n"]
    """Decayed maximum, saved in checkpoints."""
    occupied: Bool[Tensor, "n n n"]
    """Dense cells and their 26 neighbours, so that a surface can grow into empty space."""

    def __init__(
        self, resolution: int, radius: float, threshold: float, device: torch.device | str = "cpu"
    ) -> None:
        """Mark every cell as occupied. `threshold`: density of dense cells, in 1/world unit."""
        self.radius, self.threshold = radius, threshold
        self.density = torch.zeros((resolution,) * 3, device=device)
        self.occupied = torch.ones((resolution,) * 3, dtype=torch.bool, device=device)
        self.beneath: tuple[Tensor, Tensor] | None = None

    def stand_on(self, occupied: Bool[Tensor, "n n n"], free: Bool[Tensor, "n n n"]) -> None:
        """From now on, occupy at least the cells of `occupied`, and others only among `free`."""
        self.beneath = occupied, free
        self._store(self.density)

    def undilated(self) -> "OccupancyGrid":
        """The dense cells alone."""
        grid = copy(self)
        grid.occupied = self.density > self.threshold
        return grid

    def contains(self, points: Float[Tensor, "n 3"]) -> Bool[Tensor, "n"]:
        """Whether points lie in occupied cells."""
        return in_cells(self.occupied, self.radius, points)

    @torch.no_grad()
    def update(self, density: DensityFn, rng: torch.Generator, decay: float = 0.9) -> None:
        """Evaluate a random point per cell; the stored maximum decays by `decay`."""
        self._store(torch.maximum(self.density * decay, self._evaluate(density, rng)))

    @torch.no_grad()
    def refresh(self, density: DensityFn, rng: torch.Generator, evaluations: int = 4) -> None:
        """Rebuild the grid from `evaluations` random points per cell."""
        grids = (self._evaluate(density, rng) for _ in range(evaluations))
        self._store(reduce(torch.maximum, grids))

    def restore(self, density: Float32[Tensor, "n n n"]) -> None:
        self._store(density.to(self.density.device))

    def _evaluate(self, density: DensityFn, rng: torch.Generator) -> Tensor:
        n, device = self.density.shape[0], self.density.device
        axis = torch.arange(n, device=device)
        cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        offsets = torch.rand(cells.shape, generator=rng, device=device)
        points = ((cells + offsets) / n * 2 - 1) * self.radius
        return torch.cat([density(chunk) for chunk in points.split(CHUNK)]).reshape(n, n, n)

    def _store(self, density: Tensor) -> None:
        self.density = density
        dense = (density > self.threshold).float()[None, None]
        self.occupied = torch.nn.functional.max_pool3d(dense, 3, stride=1, padding=1)[0, 0] > 0
        if self.beneath is not None:
            occupied, free = self.beneath
            self.occupied = occupied | (self.occupied & free)


def in_cells(
    cells: Bool[Tensor, "n n n"], radius: float, points: Float[Tensor, "m 3"]
) -> Bool[Tensor, "m"]:
    """The values of cells over the cube [-radius, radius]^3 at points; False outside of it."""
    n = cells.shape[0]
    index = ((points + radius) * (n / (2 * radius))).floor().long()
    inside = ((index >= 0) & (index < n)).all(-1)
    i, j, k = index.clamp(0, n - 1).unbind(-1)
    return inside & cells[i, j, k]


def cell_centres(
    n: int, radius: float, device: torch.device | str = "cpu"
) -> Float[Tensor, "{n**3} 3"]:
    """Centres of n^3 cells over the cube [-radius, radius]^3, the last axis fastest."""
    axis = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1) * radius
    return torch.cartesian_prod(axis, axis, axis)
