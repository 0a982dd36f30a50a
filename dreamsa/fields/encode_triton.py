"""The hash encoding on a GPU (Triton). With TRITON_INTERPRET=1 it runs on CPU tensors, slowly.

Each program encodes a block of points on one level.
"""
# Kernels are not ordinary Python:
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false, reportAssignmentType=false

from functools import lru_cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamsa.config import HashGridConfig
from dreamsa.fields.layout import Encode, Layout, differentiable

BLOCK = 256
"""Points per program."""


@triton.jit
def _lattice(points, i, mask, scale):
    """Lattice cells of points on a level, and fractional coordinates within them."""
    px = tl.load(points + 3 * i, mask=mask, other=0.0) * scale + 0.5
    py = tl.load(points + 3 * i + 1, mask=mask, other=0.0) * scale + 0.5
    pz = tl.load(points + 3 * i + 2, mask=mask, other=0.0) * scale + 0.5
    x = px.to(tl.int32)  # floor, because positions are positive
    y, z = py.to(tl.int32), pz.to(tl.int32)
    return x, y, z, px - x, py - y, pz - z


@triton.jit
def _level(levels, level):
    """Resolution, number of entries, offset and density flag of a level."""
    resolution = tl.load(levels + 4 * level).to(tl.uint32)
    size = tl.load(levels + 4 * level + 1).to(tl.uint32)
    return resolution, size, tl.load(levels + 4 * level + 2), tl.load(levels + 4 * level + 3) != 0


@triton.jit
def _corner(x, y, z, fx, fy, fz, resolution, size, offset, dense, CORNER: tl.constexpr):
    """Table row (Instant-NGP, eq. 4, unless dense) and trilinear weight of a cell corner."""
    dx, dy, dz = CORNER >> 2 & 1, CORNER >> 1 & 1, CORNER & 1
    wx = fx if dx else 1 - fx
    wy = fy if dy else 1 - fy
    wz = fz if dz else 1 - fz
    i, j, k = (x + dx).to(tl.uint32), (y + dy).to(tl.uint32), (z + dz).to(tl.uint32)
    hashed = i ^ (j * 2654435761) ^ (k * 805459861)
    row = tl.where(dense, i + resolution * (j + resolution * k), hashed) % size
    return offset + row.to(tl.int64), wx * wy * wz


@triton.jit(do_not_specialize=["n"])
def _forward(
    points, table, out, scales, levels, n,
    WIDTH: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    # int64, because points times width may exceed 2^31
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    resolution, size, offset, dense = _level(levels, level)
    x, y, z, fx, fy, fz = _lattice(points, i, i < n, tl.load(scales + level))
    for f in tl.static_range(FEATURES):
        total = tl.zeros([BLOCK], tl.float32)
        for corner in tl.static_range(8):
            row, weight = _corner(x, y, z, fx, fy, fz, resolution, size, offset, dense, corner)
            total += weight * tl.load(table + row * FEATURES + f, mask=i < n, other=0.0)
        tl.store(out + i * WIDTH + level * FEATURES + f, total, mask=i < n)


@triton.jit(do_not_specialize=["n"])
def _backward(
    points, upstream, grad, scales, levels, n,
    WIDTH: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    resolution, size, offset, dense = _level(levels, level)
    x, y, z, fx, fy, fz = _lattice(points, i, i < n, tl.load(scales + level))
    for f in tl.static_range(FEATURES):
        gradient = tl.load(upstream + i * WIDTH + level * FEATURES + f, mask=i < n, other=0.0)
        for corner in tl.static_range(8):
            row, weight = _corner(x, y, z, fx, fy, fz, resolution, size, offset, dense, corner)
            mask = (i < n) & (gradient != 0)
            tl.atomic_add(grad + row * FEATURES + f, weight * gradient, mask=mask, sem="relaxed")


def encode_triton(layout: Layout) -> Encode:
    """The encoding on a GPU: `differentiable`. Its gradients are not deterministic."""
    scales = torch.tensor(layout.scales, dtype=torch.float32)
    dense = [layout.is_dense(level) for level in range(layout.config.levels)]
    rows = zip(layout.resolutions, layout.sizes, layout.offsets[:-1], dense, strict=True)
    levels = torch.tensor(list(rows), dtype=torch.int32)
    sizes = layout.width, layout.config.features, BLOCK

    @lru_cache
    def constants_on(device: torch.device) -> tuple[Tensor, Tensor]:
        return scales.to(device), levels.to(device)

    def launch(kernel, points: Tensor, values: Tensor, out: Tensor) -> None:
        if n := len(points):
            grid = (triton.cdiv(n, BLOCK), layout.config.levels)
            with torch.cuda.device_of(points):  # Triton launches on the current device
                kernel[grid](points, values, out, *constants_on(points.device), n, *sizes)

    return differentiable(layout, partial(launch, _forward), partial(launch, _backward))


def probe(device: torch.device) -> None:
    """Encode one point, forward and backward; raises if Triton does not work on the device."""
    layout = Layout(HashGridConfig())
    table = torch.ones(layout.entries, layout.config.features, device=device, requires_grad=True)
    out = encode_triton(layout)(torch.full((1, 3), 0.3, device=device), table).sum()
    (grad,) = torch.autograd.grad(out, table)
    check = torch.stack([out.detach(), grad.sum()]).tolist()
    if max(abs(value - layout.width) for value in check) > 1e-3:
        raise ValueError(f"the sums are {check}, not {layout.width}")
