"""Multi-resolution hash encoding (Instant-NGP, arXiv:2201.05989): its specification, its backends and the torch reference.

Every backend reads and writes one parameter layout, tiny-cuda-nn's: the levels' entries one after the other in one table
[entries, features]. A scene trained with one backend opens with any other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, log2
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.accelerator import why_not

PRIMES = (1, 2654435761, 805459861)
"""The coherent prime hash of Instant-NGP, eq. 4."""

BackendName = Literal["auto", "torch", "numba", "triton", "tcnn"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

TRITON = "dreamsa.fields.hashgrid_triton"

Encode = Callable[[Float[Tensor, "n 3"], Float[Tensor, "entries features"]], Float[Tensor, "n levels*features"]]
"""(points in [0, 1], table) -> encoding, differentiable in the table."""


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot be used here; the message says why."""


@dataclass(frozen=True)
class HashGridConfig:
    levels: int = 8
    features: int = 2
    """Numbers per table entry."""
    log2_size: int = 15
    """Base-2 logarithm of a level's largest number of entries."""
    coarsest: int = 16
    """Resolution of the first level, cells per side."""
    finest: int = 256
    """Resolution of the last level."""

    def __post_init__(self) -> None:
        for name, low, high in (("levels", 1, 32), ("features", 1, 8), ("log2_size", 4, 24), ("coarsest", 2, 1024)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"grid.{name} must lie in [{low}, {high}], got {value}.")
        if not self.coarsest <= self.finest <= 2**16:
            raise ValueError(f"grid.finest must lie in [coarsest = {self.coarsest}, 65536], got {self.finest}.")

    @cached_property
    def growth(self) -> float:
        """Ratio of one level's resolution to the one before."""
        return (self.finest / self.coarsest) ** (1 / max(self.levels - 1, 1))

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Per level: a point in [0, 1] lies at `point * scale + 0.5` on the level's lattice."""
        return tuple(2 ** (level * log2(self.growth)) * self.coarsest - 1 for level in range(self.levels))

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Lattice points per side of each level."""
        return tuple(ceil(scale) + 1 for scale in self.scales)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each level: all lattice points (rounded up to a multiple of 8) while they fit, else 2**log2_size."""
        return tuple(min(ceil(r**3 / 8) * 8, 2**self.log2_size) for r in self.resolutions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First entry of each level, and the total number of entries."""
        offsets = [0]
        for size in self.sizes:
            offsets.append(offsets[-1] + size)
        return tuple(offsets)

    @property
    def entries(self) -> int:
        return self.offsets[-1]

    @property
    def width(self) -> int:
        """Length of an encoding."""
        return self.levels * self.features

    def is_dense(self, level: int) -> bool:
        """Whether the level stores its lattice as it is, without hashing."""
        return self.resolutions[level] ** 3 <= self.sizes[level]


LEVELS_AT_ONCE = 2**19
"""Points times levels that the torch encoding takes in one go: few kernels where there are few points, little memory where there are many."""


def encode_torch(config: HashGridConfig) -> Encode:
    """The reference: any device, any float dtype, differentiable in points and table. Gathers with F.embedding, whose
    gradient, unlike that of `table[index]`, is the same for every number of threads."""
    corners = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    primes = torch.tensor(PRIMES)
    dense = torch.tensor([config.is_dense(level) for level in range(config.levels)])
    strides = torch.tensor([[1, r, r * r] for r in config.resolutions])
    scales = torch.tensor(config.scales, dtype=torch.float64)
    whole = (corners, primes, dense, strides, scales, torch.tensor(config.sizes), torch.tensor(config.offsets[:-1]))

    @lru_cache
    def on(device: torch.device) -> tuple[Tensor, ...]:
        return tuple(value.to(device) for value in whole)

    def some_levels(points: Tensor, table: Tensor, levels: slice) -> Tensor:
        shift, primes, *rest = on(points.device)
        dense, strides, scales, sizes, offsets = (value[levels] for value in rest)
        position = points[:, None] * scales.to(points.dtype)[:, None] + 0.5  # [n, levels, 3]
        cell = position.floor()
        fraction = (position - cell).unsqueeze(2)  # [n, levels, 1, 3]
        lattice = cell.long().unsqueeze(2) + shift  # [n, levels, 8, 3]
        product = lattice * torch.where(dense[:, None], strides, primes)[:, None]
        x, y, z = product.unbind(-1)
        index = torch.where(dense[:, None], x + y + z, (x ^ y ^ z) & 0xFFFFFFFF) % sizes[:, None] + offsets[:, None]
        weights = torch.where(shift.bool(), fraction, 1 - fraction).prod(-1)  # [n, levels, 8]
        corner_values = torch.nn.functional.embedding(index, table)  # [n, levels, 8, features]
        return (weights.unsqueeze(-1) * corner_values).sum(2).flatten(1)

    def encode(points: Tensor, table: Tensor) -> Tensor:
        at_once = max(LEVELS_AT_ONCE // max(len(points), 1), 1)
        parts = [some_levels(points, table, slice(first, first + at_once)) for first in range(0, config.levels, at_once)]
        return torch.cat(parts, dim=-1)

    return encode


def resolve_backend(name: BackendName, device: torch.device | str) -> tuple[Literal["torch", "numba", "triton", "tcnn"], str]:
    """Which backend runs, and why: ("numba", "reason").

    Raises:
        BackendUnavailable: A backend was named that cannot run on this device.
    """
    kind = torch.device(device).type
    if name == "torch":
        return "torch", "asked for"
    if name == "numba":
        if kind != "cpu":
            raise BackendUnavailable(f"Hash-grid backend 'numba' runs on the CPU, the device is {kind}. Use triton or torch.")
        return "numba", "asked for"
    if name == "triton":
        trouble = why_not(TRITON, torch.device(device)) if kind == "cuda" else f"it needs a CUDA device, the device is {kind}"
        if trouble is not None:
            raise BackendUnavailable(
                f"Hash-grid backend 'triton' cannot be used here: {trouble}. Use {'torch' if kind == 'cuda' else 'numba or torch'}."
            )
        return "triton", "asked for"
    if name == "tcnn":
        from dreamsa.fields.hashgrid_tcnn import require_tinycudann

        require_tinycudann(kind)
        return "tcnn", "asked for"
    if name != "auto":
        raise ValueError(f"There is no hash-grid backend {name!r}. There are: {', '.join(BACKENDS)}.")
    if kind == "cpu":
        return "numba", "the device is a CPU"
    trouble = why_not(TRITON, torch.device(device)) if kind == "cuda" else f"the device is {kind}"
    return ("triton", "the device is a GPU") if trouble is None else ("torch", f"no Triton: {trouble}")


def make_encode(config: HashGridConfig, backend: BackendName, device: torch.device | str) -> Encode:
    """The encoding function of one backend."""
    resolved, _ = resolve_backend(backend, device)
    if resolved == "numba":
        from dreamsa.fields.hashgrid_cpu import encode_numba

        return encode_numba(config)
    if resolved == "triton":
        from dreamsa.fields.hashgrid_triton import encode_triton

        return encode_triton(config)
    if resolved == "tcnn":
        from dreamsa.fields.hashgrid_tcnn import encode_tcnn

        return encode_tcnn(config)
    return encode_torch(config)


def new_table(config: HashGridConfig, rng: torch.Generator) -> Float[Tensor, "{config.entries} {config.features}"]:
    """Initial table, U[-1e-4, 1e-4] as Instant-NGP's, on the generator's device."""
    return torch.rand(config.entries, config.features, generator=rng, device=rng.device) * 2e-4 - 1e-4
