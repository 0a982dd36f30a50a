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
def _level(levels, level):
    """Resolution, entries, first entry of a level, and whether it is dense."""
    resolution, size = tl.load(levels + 4 * level).to(tl.uint32), tl.load(levels + 4 * level + 1).to(tl.uint32)
    return resolution, size, tl.load(levels + 4 * level + 2), tl.load(levels + 4 * level + 3) != 0


@triton.jit
def _corner(x, y, z, fx, fy, fz, resolution, size, offset, dense, CORNER: tl.constexpr):
    """One corner of each point's cell: its row in the table, as it lies where the level is dense, hashed (Instant-NGP, eq. 4) where it is not; and
    its trilinear weight."""
    dx, dy, dz = CORNER >> 2 & 1, CORNER >> 1 & 1, CORNER & 1
    wx = fx if dx else 1 - fx
    wy = fy if dy else 1 - fy
    wz = fz if dz else 1 - fz
    i, j, k = (x + dx).to(tl.uint32), (y + dy).to(tl.uint32), (z + dz).to(tl.uint32)
    hashed = i ^ (j * 2654435761) ^ (k * 805459861)
    return offset + (tl.where(dense, i + resolution * (j + resolution * k), hashed) % size).to(tl.int64), wx * wy * wz


@triton.jit(do_not_specialize=["n"])
def _forward(points, table, out, scales, levels, n, WIDTH: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # points times width may be more than 2^31
    resolution, size, offset, dense = _level(levels, level)
    x, y, z, fx, fy, fz = _lattice(points, i, i < n, tl.load(scales + level))
    for f in tl.static_range(FEATURES):
        total = tl.zeros([BLOCK], tl.float32)
        for corner in tl.static_range(8):
            row, weight = _corner(x, y, z, fx, fy, fz, resolution, size, offset, dense, corner)
            total += weight * tl.load(table + row * FEATURES + f, mask=i < n, other=0.0)
        tl.store(out + i * WIDTH + level * FEATURES + f, total, mask=i < n)


@triton.jit(do_not_specialize=["n"])
def _backward(points, upstream, grad, scales, levels, n, WIDTH: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    resolution, size, offset, dense = _level(levels, level)
    x, y, z, fx, fy, fz = _lattice(points, i, i < n, tl.load(scales + level))
    for f in tl.static_range(FEATURES):
        flowing = tl.load(upstream + i * WIDTH + level * FEATURES + f, mask=i < n, other=0.0)
        for corner in tl.static_range(8):
            row, weight = _corner(x, y, z, fx, fy, fz, resolution, size, offset, dense, corner)
            tl.atomic_add(grad + row * FEATURES + f, weight * flowing, mask=(i < n) & (flowing != 0), sem="relaxed")


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
