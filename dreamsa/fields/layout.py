"""Table layout of the multi-resolution hash encoding (Instant-NGP, arXiv:2201.05989).

All backends share the layout of tiny-cuda-nn: the entries of all levels, concatenated, in one table
[entries, features].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import ceil, log2

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.config import HashGridConfig

PRIMES = (1, 2654435761, 805459861)
"""The coherent prime hash of Instant-NGP, eq. 4."""

Encode = Callable[
    [Float[Tensor, "n 3"], Float[Tensor, "entries features"]], Float[Tensor, "n levels*features"]
]
"""(points in [0, 1], table) -> encoding, differentiable in the table."""


class BackendUnavailable(RuntimeError):
    """A backend requested by name cannot run here; the message gives the reason."""


@dataclass(frozen=True)
class Layout:
    """Sizes and offsets of the levels in the table."""

    config: HashGridConfig

    @cached_property
    def growth(self) -> float:
        """Ratio of one level's resolution to the one before."""
        return (self.config.finest / self.config.coarsest) ** (1 / max(self.config.levels - 1, 1))

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Per level: a point in [0, 1] has lattice coordinates `point * scale + 0.5`."""
        growth, coarsest = log2(self.growth), self.config.coarsest
        return tuple(2 ** (level * growth) * coarsest - 1 for level in range(self.config.levels))

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Lattice points per side of each level."""
        return tuple(ceil(scale) + 1 for scale in self.scales)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries per level: lattice points rounded up to a multiple of 8, at most 2**log2_size."""
        return tuple(min(ceil(r**3 / 8) * 8, 2**self.config.log2_size) for r in self.resolutions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First entry of each level, and the total number of entries."""
        return tuple(accumulate(self.sizes, initial=0))

    @property
    def entries(self) -> int:
        return self.offsets[-1]

    @property
    def width(self) -> int:
        """Length of an encoding."""
        return self.config.levels * self.config.features

    def is_dense(self, level: int) -> bool:
        """Whether the level stores every lattice point, without hashing."""
        return self.resolutions[level] ** 3 <= self.sizes[level]


def new_table(
    layout: Layout, rng: torch.Generator
) -> Float[Tensor, "{layout.entries} {layout.config.features}"]:
    """Initial table, U[-1e-4, 1e-4] as in Instant-NGP, on the generator's device."""
    shape = layout.entries, layout.config.features
    return torch.rand(shape, generator=rng, device=rng.device) * 2e-4 - 1e-4


def differentiable(
    layout: Layout, forward: Callable[..., None], backward: Callable[..., None]
) -> Encode:
    """An encoding in float32, differentiable in the table, from kernels.

    Args:
        forward: Writes the encoding: (points, table, out).
        backward: Adds the gradient of the table: (points, gradient of the encoding, out).

    Raises:
        ValueError: On a call whose points require a gradient.
    """

    class Encoding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, points: Tensor, table: Tensor) -> Tensor:
            points = points.detach().float().contiguous()
            out = points.new_empty(len(points), layout.width)
            forward(points, table.detach().contiguous(), out)
            ctx.save_for_backward(points)
            return out

        @staticmethod
        def backward(ctx, *upstream: Tensor) -> tuple[None, Tensor]:
            (points,) = ctx.saved_tensors
            grad = points.new_zeros(layout.entries, layout.config.features)
            backward(points, upstream[0].float().contiguous(), grad)
            return None, grad

    def encode(points: Tensor, table: Tensor) -> Tensor:
        if points.requires_grad:
            raise ValueError(
                "This hash grid has no gradient in the points. "
                "Use backend torch or finite differences."
            )
        out: Tensor = Encoding.apply(points, table)  # pyright: ignore[reportAssignmentType]
        return out

    return encode
