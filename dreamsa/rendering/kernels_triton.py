"""The kernels of `kernels_torch` on a GPU (Triton).

With TRITON_INTERPRET=1 they run on CPU tensors, slowly.
"""
# Kernels are not ordinary Python:
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false, reportAssignmentType=false

from math import exp, log

import torch
import triton
import triton.language as tl
from torch import Tensor

RAYS = 128
"""Rays per marching program."""
SAMPLES = 64
"""Samples processed at a time by a program, which composites one ray."""


@triton.jit(do_not_specialize=["rays"])
def _march(
    occupied, origins, directions, near, far, first, starts, out, rays, radius, step,
    CELLS: tl.constexpr, FILL: tl.constexpr, RAYS: tl.constexpr,
):  # fmt: skip
    """Write the midpoints of each ray's samples from `starts` on; without FILL, their number."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    valid = ray < rays
    ox = tl.load(origins + 3 * ray, mask=valid, other=0.0)
    oy = tl.load(origins + 3 * ray + 1, mask=valid, other=0.0)
    oz = tl.load(origins + 3 * ray + 2, mask=valid, other=0.0)
    dx = tl.load(directions + 3 * ray, mask=valid, other=0.0)
    dy = tl.load(directions + 3 * ray + 1, mask=valid, other=0.0)
    dz = tl.load(directions + 3 * ray + 2, mask=valid, other=0.0)
    a, b = tl.load(near + ray, mask=valid, other=0.0), tl.load(far + ray, mask=valid, other=0.0)
    offset = tl.load(first + ray, mask=valid, other=0.0)
    steps = tl.maximum(tl.ceil((b - a) / step), 0.0).to(tl.int32)
    at = tl.zeros([RAYS], tl.int64)
    if FILL:
        at += tl.load(starts + ray, mask=valid, other=0)
    scale = CELLS / (2 * radius)
    for k in range(tl.max(steps, 0)):
        t = a + (k + offset) * step
        x = tl.minimum(tl.maximum(((ox + t * dx + radius) * scale).to(tl.int32), 0), CELLS - 1)
        y = tl.minimum(tl.maximum(((oy + t * dy + radius) * scale).to(tl.int32), 0), CELLS - 1)
        z = tl.minimum(tl.maximum(((oz + t * dz + radius) * scale).to(tl.int32), 0), CELLS - 1)
        inside = valid & (k < steps) & (t < b)
        hit = inside & (tl.load(occupied + (x * CELLS + y) * CELLS + z, mask=inside, other=0) != 0)
        if FILL:
            tl.store(out + at, t, mask=hit)
        at += hit.to(tl.int64)
    if not FILL:
        tl.store(out + ray, at, mask=valid)


def march(
    occupied: Tensor, radius: float, origins, directions, near, far, first, step: float
) -> tuple[Tensor, Tensor]:
    rays = len(origins)
    starts = torch.zeros(rays + 1, dtype=torch.int64, device=origins.device)
    if not rays:
        return starts, origins.new_empty(0)
    tensors = (occupied.view(torch.uint8), origins, directions, near, far, first)
    tensors = [value.contiguous() for value in tensors]
    numbers = (rays, radius, step, occupied.shape[0])
    grid = (triton.cdiv(rays, RAYS),)
    with torch.cuda.device_of(origins):  # Triton launches on the current device
        _march[grid](*tensors, starts, starts[1:], *numbers, False, RAYS)
        starts = starts.cumsum(0)
        t_mid = origins.new_empty(int(starts[-1]))
        _march[grid](*tensors, starts, t_mid, *numbers, True, RAYS)
    return starts, t_mid


@triton.jit
def _visible(depth, starts, keep, limit, SAMPLES: tl.constexpr):
    ray = tl.program_id(0)
    end, optical = tl.load(starts + ray + 1), 0.0
    for at in range(tl.load(starts + ray), end, SAMPLES):
        i = at + tl.arange(0, SAMPLES)
        here = tl.load(depth + i, mask=i < end, other=0.0)
        tl.store(keep + i, (optical + tl.cumsum(here, 0) - here < limit).to(tl.int8), mask=i < end)
        optical += tl.sum(here, 0)


def visible(depth: Tensor, starts: Tensor, threshold: float) -> Tensor:
    keep = torch.empty(len(depth), dtype=torch.int8, device=depth.device)
    if len(depth):
        with torch.cuda.device_of(depth):
            tensors = depth.detach().contiguous(), starts.contiguous(), keep
            _visible[(len(starts) - 1,)](*tensors, -log(threshold), SAMPLES, num_warps=1)
    return keep.view(torch.bool)


@triton.jit
def _composite(
    depth, values, starts, out, C: tl.constexpr, WIDE: tl.constexpr, SAMPLES: tl.constexpr
):
    ray, c = tl.program_id(0), tl.arange(0, WIDE)
    end, optical = tl.load(starts + ray + 1), 0.0
    sums = tl.zeros([WIDE], tl.float32)
    for at in range(tl.load(starts + ray), end, SAMPLES):
        i = at + tl.arange(0, SAMPLES)
        here = tl.load(depth + i, mask=i < end, other=0.0)
        weights = tl.exp(-(optical + tl.cumsum(here, 0) - here)) * (1 - tl.exp(-here))
        optical += tl.sum(here, 0)
        mask = (i < end)[:, None] & (c < C)[None, :]
        rows = tl.load(values + i[:, None] * C + c[None, :], mask=mask, other=0.0)
        sums += tl.sum(weights[:, None] * rows, 0)
    tl.store(out + ray * C + c, sums, mask=c < C)


@triton.jit
def _composite_backward(
    depth, values, starts, out, upstream, grad_depth, grad_values,
    C: tl.constexpr, WIDE: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Gradients of depth and values, with u_i = <upstream, values_i>.

    d depth_i = exp(-sum of the depths up to and including i) u_i - sum of weight_j u_j, j behind i.
    """
    ray, c = tl.program_id(0), tl.arange(0, WIDE)
    end, optical = tl.load(starts + ray + 1), 0.0
    gradient = tl.load(upstream + ray * C + c, mask=c < C, other=0.0)
    behind = tl.sum(gradient * tl.load(out + ray * C + c, mask=c < C, other=0.0), 0)
    for at in range(tl.load(starts + ray), end, SAMPLES):
        i = at + tl.arange(0, SAMPLES)
        here = tl.load(depth + i, mask=i < end, other=0.0)
        through = optical + tl.cumsum(here, 0)
        weights = tl.exp(here - through) * (1 - tl.exp(-here))
        optical += tl.sum(here, 0)
        mask = (i < end)[:, None] & (c < C)[None, :]
        at_values = i[:, None] * C + c[None, :]
        rows = tl.load(values + at_values, mask=mask, other=0.0)
        u = tl.sum(rows * gradient[None, :], 1)
        tl.store(grad_values + at_values, weights[:, None] * gradient[None, :], mask=mask)
        grad = tl.exp(-through) * u - (behind - tl.cumsum(weights * u, 0))
        tl.store(grad_depth + i, grad, mask=i < end)
        behind -= tl.sum(weights * u, 0)


class Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, depth: Tensor, values: Tensor, starts: Tensor) -> Tensor:
        depth, values = depth.detach().contiguous(), values.detach().contiguous()
        rays, c = len(starts) - 1, values.shape[1]
        out = values.new_empty(rays, c)
        tensors = depth, values, starts.contiguous(), out
        with torch.cuda.device_of(depth):
            sizes = c, triton.next_power_of_2(c), SAMPLES
            _composite[(rays,)](*tensors, *sizes, num_warps=1)
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        depth, values, _, out = ctx.saved_tensors
        rays, c = out.shape
        grads = torch.empty_like(depth), torch.empty_like(values)
        tensors = *ctx.saved_tensors, upstream[0].contiguous(), *grads
        with torch.cuda.device_of(depth):
            sizes = c, triton.next_power_of_2(c), SAMPLES
            _composite_backward[(rays,)](*tensors, *sizes, num_warps=1)
        return *grads, None


def composite(depth: Tensor, values: Tensor, starts: Tensor) -> Tensor:
    return Composite.apply(depth, values, starts)  # pyright: ignore[reportReturnType]


def probe(device: torch.device) -> None:
    """Run all kernels on one ray; raises if Triton does not work on the device."""
    one = torch.ones(1, device=device)
    full = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
    starts, t_mid = march(
        full, 1.0, 0 * one.expand(1, 3), one.expand(1, 3), 0 * one, one, one / 2, 0.5
    )
    depth = torch.ones_like(t_mid, requires_grad=True)
    out = composite(depth, one.expand(len(t_mid), 1), starts).sum()
    (grad,) = torch.autograd.grad(out, depth)
    shown = visible(depth, starts, 0.1).sum()
    found = torch.stack([starts[-1], shown, 1 - out.detach(), grad.sum() / 2]).tolist()
    expected = (2, 2, exp(-2), exp(-2))
    if max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 1e-3:
        raise ValueError(f"the kernels give {found}, not {expected}")
