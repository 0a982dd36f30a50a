"""Which cells of the scene may hold something: empty space is never sampled (Instant-NGP, arXiv:2201.05989, sec. 5.2)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

DensityFn = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]
"""points -> density."""


class OccupancyGrid:
    """A cube of cells over [-radius, radius]^3 with the largest density lately seen in each."""

    density: Float32[Tensor, "n n n"]
    """Decayed maximum; what is saved in a checkpoint."""
    occupied: Bool[Tensor, "n n n"]
    """Cells whose neighbourhood is dense enough to be sampled. One cell of margin around everything dense stays on, so that a
    surface can grow into empty space."""

    def __init__(self, resolution: int, radius: float, threshold: float, device: torch.device | str = "cpu") -> None:
        """`threshold`: density above which a cell counts, in 1/world unit."""
        self.radius, self.threshold = radius, threshold
        self.density = torch.zeros((resolution,) * 3, device=device)
        self.occupied = torch.ones((resolution,) * 3, dtype=torch.bool, device=device)

    @torch.no_grad()
    def update(self, density: DensityFn, rng: torch.Generator, decay: float = 0.9) -> None:
        """Look at one random point in every cell; the stored maximum fades by `decay`."""
        self._store(torch.maximum(self.density * decay, self._look(density, rng)))

    @torch.no_grad()
    def refresh(self, density: DensityFn, rng: torch.Generator, looks: int = 4) -> None:
        """Forget what was stored and look again, `looks` points in every cell."""
        seen = self._look(density, rng)
        for _ in range(looks - 1):
            seen = torch.maximum(seen, self._look(density, rng))
        self._store(seen)

    def restore(self, density: Float32[Tensor, "n n n"]) -> None:
        """Take up saved densities."""
        self._store(density.to(self.density.device))

    def _look(self, density: DensityFn, rng: torch.Generator) -> Tensor:
        n, device = self.density.shape[0], self.density.device
        axis = torch.arange(n, device=device)
        cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        inside = torch.rand(cells.shape, generator=rng, device=device)
        points = ((cells + inside) / n * 2 - 1) * self.radius
        return torch.cat([density(chunk) for chunk in points.split(2**16)]).reshape(n, n, n)

    def _store(self, density: Tensor) -> None:
        self.density = density
        dense = (density > self.threshold).float()[None, None]
        self.occupied = torch.nn.functional.max_pool3d(dense, 3, stride=1, padding=1)[0, 0] > 0
