"""The hash encoding in plain torch: the reference for the other backends, on any device."""

from functools import lru_cache

import torch
from torch import Tensor

from dreamsa.fields.layout import PRIMES, Encode, Layout

MAX_PAIRS = 2**19
"""Maximum number of (point, level) pairs encoded at once, which bounds memory."""


def encode_torch(layout: Layout) -> Encode:
    """For any device and float dtype, differentiable in points and table.

    The gradient of F.embedding, unlike that of `table[index]`, is the same for any thread count.
    """
    levels = layout.config.levels
    corners = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    dense = torch.tensor([layout.is_dense(level) for level in range(levels)])
    strides = torch.tensor([[1, r, r * r] for r in layout.resolutions])
    scales = torch.tensor(layout.scales, dtype=torch.float64)
    integers = map(torch.tensor, (layout.sizes, layout.offsets[:-1]))
    constants = (corners, torch.tensor(PRIMES), dense, strides, scales, *integers)

    @lru_cache
    def constants_on(device: torch.device) -> tuple[Tensor, ...]:
        return tuple(value.to(device) for value in constants)

    def encode_levels(points: Tensor, table: Tensor, levels: slice) -> Tensor:
        shift, primes, *rest = constants_on(points.device)
        dense, strides, scales, sizes, offsets = (value[levels] for value in rest)
        dense = dense[:, None]
        position = points[:, None] * scales.to(points.dtype)[:, None] + 0.5  # [n, levels, 3]
        cell = position.floor()
        fraction = (position - cell).unsqueeze(2)  # [n, levels, 1, 3]
        lattice = cell.long().unsqueeze(2) + shift  # [n, levels, 8, 3]
        x, y, z = (lattice * torch.where(dense, strides, primes)[:, None]).unbind(-1)
        index = torch.where(dense, x + y + z, (x ^ y ^ z) & 0xFFFFFFFF)
        index = index % sizes[:, None] + offsets[:, None]
        weights = torch.where(shift.bool(), fraction, 1 - fraction).prod(-1)  # [n, levels, 8]
        values = torch.nn.functional.embedding(index, table)  # [n, levels, 8, features]
        return (weights.unsqueeze(-1) * values).sum(2).flatten(1)

    def encode(points: Tensor, table: Tensor) -> Tensor:
        count = max(MAX_PAIRS // max(len(points), 1), 1)
        slices = (slice(first, first + count) for first in range(0, levels, count))
        return torch.cat([encode_levels(points, table, part) for part in slices], dim=-1)

    return encode
