"""The hash encoding on a GPU by Triton, which comes with torch for CUDA; the only importer of triton in this folder.

Each program takes a block of points on one level. With TRITON_INTERPRET=1 in the environment the kernels run on CPU tensors, slowly.
"""
# What Triton compiles looks like Python and is none:
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false, reportAssignmentType=false

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamsa.fields.hashgrid import Encode, HashGridConfig

BLOCK = 256
"""Points of a program."""


@triton.jit
def _lattice(points, i, mask, scale):
    """Lattice cells of points on a level, and where in their cells they lie."""
    px = tl.load(points + 3 * i, mask=mask, other=0.0) * scale + 0.5
    py = tl.load(points + 3 * i + 1, mask=mask, other=0.0) * scale + 0.5
    pz = tl.load(points + 3 * i + 2, mask=mask, other=0.0) * scale + 0.5
    x, y, z = px.to(tl.int32), py.to(tl.int32), pz.to(tl.int32)  # positions are positive, so this is floor
    return x, y, z, px - x, py - y, pz - z


@triton.jit
def _entry(x, y, z, resolution, size, dense):
    """Entries of lattice points in their level: as they lie where the level is dense, hashed (Instant-NGP, eq. 4) where it is not."""
    x, y, z = x.to(tl.uint32), y.to(tl.uint32), z.to(tl.uint32)
    hashed = x ^ (y * 2654435761) ^ (z * 805459861)
    return (tl.where(dense != 0, x + resolution * (y + resolution * z), hashed) % size).to(tl.int64)


@triton.jit(do_not_specialize=["n"])
def _forward(points, table, out, scales, levels, n, WIDTH: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # points times width may be more than 2^31
    mask = i < n
    resolution, size = tl.load(levels + 4 * level).to(tl.uint32), tl.load(levels + 4 * level + 1).to(tl.uint32)
    offset, dense = tl.load(levels + 4 * level + 2), tl.load(levels + 4 * level + 3)
    x, y, z, fx, fy, fz = _lattice(points, i, mask, tl.load(scales + level))
    for f in tl.static_range(FEATURES):
        total = tl.zeros([BLOCK], tl.float32)
        for corner in tl.static_range(8):
            dx, dy, dz = corner >> 2 & 1, corner >> 1 & 1, corner & 1
            wx = fx if dx else 1 - fx
            wy = fy if dy else 1 - fy
            wz = fz if dz else 1 - fz
            row = offset + _entry(x + dx, y + dy, z + dz, resolution, size, dense)
            total += wx * wy * wz * tl.load(table + row * FEATURES + f, mask=mask, other=0.0)
        tl.store(out + i * WIDTH + level * FEATURES + f, total, mask=mask)


@triton.jit(do_not_specialize=["n"])
def _backward(points, upstream, grad, scales, levels, n, WIDTH: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # points times width may be more than 2^31
    mask = i < n
    resolution, size = tl.load(levels + 4 * level).to(tl.uint32), tl.load(levels + 4 * level + 1).to(tl.uint32)
    offset, dense = tl.load(levels + 4 * level + 2), tl.load(levels + 4 * level + 3)
    x, y, z, fx, fy, fz = _lattice(points, i, mask, tl.load(scales + level))
    for f in tl.static_range(FEATURES):
        flowing = tl.load(upstream + i * WIDTH + level * FEATURES + f, mask=mask, other=0.0)
        for corner in tl.static_range(8):
            dx, dy, dz = corner >> 2 & 1, corner >> 1 & 1, corner & 1
            wx = fx if dx else 1 - fx
            wy = fy if dy else 1 - fy
            wz = fz if dz else 1 - fz
            row = offset + _entry(x + dx, y + dy, z + dz, resolution, size, dense)
            tl.atomic_add(grad + row * FEATURES + f, wx * wy * wz * flowing, mask=mask & (flowing != 0), sem="relaxed")


def encode_triton(config: HashGridConfig) -> Encode:
    """The encoding in float32, differentiable in the table. Not deterministic to the last bit (atomic sums)."""
    scales = torch.tensor(config.scales, dtype=torch.float32)
    dense = [config.is_dense(level) for level in range(config.levels)]
    levels = torch.tensor(list(zip(config.resolutions, config.sizes, config.offsets[:-1], dense, strict=True)), dtype=torch.int32)

    @lru_cache
    def on(device: torch.device) -> tuple[Tensor, Tensor]:
        return scales.to(device), levels.to(device)

    def launch(kernel, points: Tensor, first: Tensor, second: Tensor) -> None:
        grid = (triton.cdiv(len(points), BLOCK), config.levels)
        with torch.cuda.device_of(points):  # Triton launches on the current device
            kernel[grid](points, first, second, *on(points.device), len(points), config.width, config.features, BLOCK)

    class Encoding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, points: Tensor, table: Tensor) -> Tensor:
            points = points.detach().float().contiguous()
            out = points.new_empty(len(points), config.width)
            if len(points):
                launch(_forward, points, table.detach().contiguous(), out)
            ctx.save_for_backward(points)
            return out

        @staticmethod
        def backward(ctx, *upstream: Tensor) -> tuple[None, Tensor]:
            (points,) = ctx.saved_tensors
            grad = points.new_zeros(config.entries, config.features)
            if len(points):
                launch(_backward, points, upstream[0].float().contiguous(), grad)
            return None, grad

    def encode(points: Tensor, table: Tensor) -> Tensor:
        if points.requires_grad:
            raise ValueError("The Triton encoding has no gradient in the points. Use the torch backend for that.")
        out: Tensor = Encoding.apply(points, table)
        return out

    return encode


def probe(device: torch.device) -> None:
    """Encode one point on a GPU, forward and backward; raises where Triton cannot."""
    config = HashGridConfig()
    table = torch.ones(config.entries, config.features, device=device, requires_grad=True)
    out = encode_triton(config)(torch.full((1, 3), 0.3, device=device), table).sum()
    out.backward()
    assert table.grad is not None
    check = torch.stack([out.detach(), table.grad.sum()]).tolist()
    if max(abs(value - config.width) for value in check) > 1e-3:
        raise ValueError(f"its sums are {check}, not {config.width}")
