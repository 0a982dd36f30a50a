"""Multi-resolution hash encoding (Instant-NGP, arXiv:2201.05989): its specification, its backends and the torch reference.

Every backend reads and writes one parameter layout, tiny-cuda-nn's: the levels' entries one after the other in one table
[entries, features]. A scene trained with one backend opens with any other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log2
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)
"""The coherent prime hash of Instant-NGP, eq. 4."""

BackendName = Literal["auto", "torch", "numba", "tcnn"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

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


def encode_torch(config: HashGridConfig) -> Encode:
    """The reference: any device, any float dtype, differentiable in points and table. Gathers with F.embedding, whose
    gradient, unlike that of `table[index]`, is the same for every number of threads."""
    corners = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])

    def encode(points: Tensor, table: Tensor) -> Tensor:
        shift = corners.to(points.device)
        encodings = []
        for level, (scale, resolution, size) in enumerate(zip(config.scales, config.resolutions, config.sizes, strict=True)):
            position = points * scale + 0.5
            cell = position.floor()
            fraction = (position - cell).unsqueeze(1)  # [n, 1, 3]
            lattice = cell.long().unsqueeze(1) + shift  # [n, 8, 3]
            if config.is_dense(level):
                index = lattice[..., 0] + resolution * (lattice[..., 1] + resolution * lattice[..., 2])
            else:
                hashed = lattice * torch.tensor(PRIMES, device=points.device)
                index = (hashed[..., 0] ^ hashed[..., 1] ^ hashed[..., 2]) & 0xFFFFFFFF
            index = index % size + config.offsets[level]
            weights = torch.where(shift.bool(), fraction, 1 - fraction).prod(-1)  # [n, 8]
            corner_values = torch.nn.functional.embedding(index, table)  # [n, 8, features]
            encodings.append((weights.unsqueeze(-1) * corner_values).sum(1))
        return torch.cat(encodings, dim=-1)

    return encode


def resolve_backend(name: BackendName, device: torch.device | str) -> tuple[Literal["torch", "numba", "tcnn"], str]:
    """Which backend runs, and why: ("numba", "reason").

    Raises:
        BackendUnavailable: A backend was named that cannot run on this device. Only `auto` falls back.
    """
    kind = torch.device(device).type
    if name == "torch":
        return "torch", "asked for"
    if name == "numba":
        if kind != "cpu":
            raise BackendUnavailable(f"Hash-grid backend 'numba' runs on the CPU, the device is {kind}. Use tcnn or torch.")
        return "numba", "asked for"
    if name == "tcnn":
        from dreamsa.fields.hashgrid_tcnn import require_tinycudann

        require_tinycudann(kind)
        return "tcnn", "asked for"
    if name != "auto":
        raise ValueError(f"There is no hash-grid backend {name!r}. There are: {', '.join(BACKENDS)}.")
    if kind == "cpu":
        return "numba", "the device is a CPU"
    try:
        return resolve_backend("tcnn", device)[0], "tinycudann is installed"
    except BackendUnavailable as error:
        return "torch", str(error)


def make_encode(config: HashGridConfig, backend: BackendName, device: torch.device | str) -> Encode:
    """The encoding function of one backend."""
    resolved, _ = resolve_backend(backend, device)
    if resolved == "numba":
        from dreamsa.fields.hashgrid_cpu import encode_numba

        return encode_numba(config)
    if resolved == "tcnn":
        from dreamsa.fields.hashgrid_tcnn import encode_tcnn

        return encode_tcnn(config)
    return encode_torch(config)


def new_table(config: HashGridConfig, rng: torch.Generator) -> Float[Tensor, "{config.entries} {config.features}"]:
    """Initial table, U[-1e-4, 1e-4] as Instant-NGP's, on the generator's device."""
    return torch.rand(config.entries, config.features, generator=rng, device=rng.device) * 2e-4 - 1e-4
