"""GPU kernels of the renderer (Triton, which comes with torch for CUDA): marching, visibility, compositing. The references in `volume.py` are the
definition; tests hold the two together. With TRITON_INTERPRET=1 in the environment they run on CPU tensors, slowly."""
# What Triton compiles looks like Python and is none:
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false, reportAssignmentType=false

from math import exp, log

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int64
from torch import Tensor

RAYS = 128
"""Rays of a program that marches."""
SAMPLES = 64
"""Samples that a program takes at a time of its one ray."""


@triton.jit(do_not_specialize=["rays"])
def _march(
    occupied, origins, directions, near, far, first, starts, out, rays, radius, step, CELLS: tl.constexpr, FILL: tl.constexpr, RAYS: tl.constexpr
):  # fmt: skip
    """Midpoints of each ray's samples, written from its start on; without FILL only how many there are."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    there = ray < rays
    ox, dx = tl.load(origins + 3 * ray, mask=there, other=0.0), tl.load(directions + 3 * ray, mask=there, other=0.0)
    oy, dy = tl.load(origins + 3 * ray + 1, mask=there, other=0.0), tl.load(directions + 3 * ray + 1, mask=there, other=0.0)
    oz, dz = tl.load(origins + 3 * ray + 2, mask=there, other=0.0), tl.load(directions + 3 * ray + 2, mask=there, other=0.0)
    a, b = tl.load(near + ray, mask=there, other=0.0), tl.load(far + ray, mask=there, other=0.0)
    within = tl.load(first + ray, mask=there, other=0.0)
    steps = tl.maximum(tl.ceil((b - a) / step), 0.0).to(tl.int32)
    at = tl.zeros([RAYS], tl.int64)
    if FILL:
        at += tl.load(starts + ray, mask=there, other=0)
    scale = CELLS / (2 * radius)
    for k in range(tl.max(steps, 0)):
        t = a + (k + within) * step
        x = tl.minimum(tl.maximum(((ox + t * dx + radius) * scale).to(tl.int32), 0), CELLS - 1)
        y = tl.minimum(tl.maximum(((oy + t * dy + radius) * scale).to(tl.int32), 0), CELLS - 1)
        z = tl.minimum(tl.maximum(((oz + t * dz + radius) * scale).to(tl.int32), 0), CELLS - 1)
        inside = there & (k < steps) & (t < b)
        hit = inside & (tl.load(occupied + (x * CELLS + y) * CELLS + z, mask=inside, other=0) != 0)
        if FILL:
            tl.store(out + at, t, mask=hit)
        at += hit.to(tl.int64)
    if not FILL:
        tl.store(out + ray, at, mask=there)


def march(
    occupied: Bool[Tensor, "n n n"],
    radius: float,
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    near: Float[Tensor, "rays"],
    far: Float[Tensor, "rays"],
    first: Float[Tensor, "rays"],
    step: float,
) -> tuple[Int64[Tensor, "rays+1"], Float[Tensor, "samples"]]:
    """`volume.march_torch` on a GPU."""
    given = [value.contiguous() for value in (occupied.view(torch.uint8), origins, directions, near, far, first)]
    rays, starts = len(origins), torch.zeros(len(origins) + 1, dtype=torch.int64, device=origins.device)
    how = (rays, radius, step, occupied.shape[0])
    grid = (triton.cdiv(rays, RAYS),)
    if not rays:
        return starts, origins.new_empty(0)
    with torch.cuda.device_of(origins):  # Triton launches on the current device
        _march[grid](*given, starts, starts[1:], *how, False, RAYS)
        starts = starts.cumsum(0)
        t_mid = origins.new_empty(int(starts[-1]))
        _march[grid](*given, starts, t_mid, *how, True, RAYS)
    return starts, t_mid


@triton.jit
def _visible(depth, starts, keep, most, SAMPLES: tl.constexpr):
    ray = tl.program_id(0)
    end, optical = tl.load(starts + ray + 1), 0.0
    for at in range(tl.load(starts + ray), end, SAMPLES):
        i = at + tl.arange(0, SAMPLES)
        here = tl.load(depth + i, mask=i < end, other=0.0)
        tl.store(keep + i, (optical + tl.cumsum(here, 0) - here < most).to(tl.int8), mask=i < end)
        optical += tl.sum(here, 0)


def visible(depth: Float[Tensor, "samples"], starts: Int64[Tensor, "edges"], threshold: float) -> Bool[Tensor, "samples"]:
    """`volume.visible_torch` on a GPU."""
    keep = torch.empty(len(depth), dtype=torch.int8, device=depth.device)
    if len(depth):
        with torch.cuda.device_of(depth):
            _visible[(len(starts) - 1,)](depth.detach().contiguous(), starts.contiguous(), keep, -log(threshold), SAMPLES, num_warps=1)
    return keep.view(torch.bool)


@triton.jit
def _composite(depth, values, starts, out, C: tl.constexpr, WIDE: tl.constexpr, SAMPLES: tl.constexpr):
    ray, c = tl.program_id(0), tl.arange(0, WIDE)
    end, optical = tl.load(starts + ray + 1), 0.0
    sums = tl.zeros([WIDE], tl.float32)
    for at in range(tl.load(starts + ray), end, SAMPLES):
        i = at + tl.arange(0, SAMPLES)
        here = tl.load(depth + i, mask=i < end, other=0.0)
        weights = tl.exp(-(optical + tl.cumsum(here, 0) - here)) * (1 - tl.exp(-here))
        optical += tl.sum(here, 0)
        rows = tl.load(values + i[:, None] * C + c[None, :], mask=(i < end)[:, None] & (c < C)[None, :], other=0.0)
        sums += tl.sum(weights[:, None] * rows, 0)
    tl.store(out + ray * C + c, sums, mask=c < C)


@triton.jit
def _composite_backward(
    depth, values, starts, out, upstream, grad_depth, grad_values, C: tl.constexpr, WIDE: tl.constexpr, SAMPLES: tl.constexpr
):  # fmt: skip
    """With u_i = <upstream, values_i>: d depth_i = exp(-depth up to and with i) u_i - sum of weight_j u_j over j behind i."""
    ray, c = tl.program_id(0), tl.arange(0, WIDE)
    end, optical = tl.load(starts + ray + 1), 0.0
    flowing = tl.load(upstream + ray * C + c, mask=c < C, other=0.0)
    behind = tl.sum(flowing * tl.load(out + ray * C + c, mask=c < C, other=0.0), 0)
    for at in range(tl.load(starts + ray), end, SAMPLES):
        i = at + tl.arange(0, SAMPLES)
        here = tl.load(depth + i, mask=i < end, other=0.0)
        through = optical + tl.cumsum(here, 0)
        weights = tl.exp(here - through) * (1 - tl.exp(-here))
        optical += tl.sum(here, 0)
        mask = (i < end)[:, None] & (c < C)[None, :]
        u = tl.sum(tl.load(values + i[:, None] * C + c[None, :], mask=mask, other=0.0) * flowing[None, :], 1)
        tl.store(grad_values + i[:, None] * C + c[None, :], weights[:, None] * flowing[None, :], mask=mask)
        tl.store(grad_depth + i, tl.exp(-through) * u - (behind - tl.cumsum(weights * u, 0)), mask=i < end)
        behind -= tl.sum(weights * u, 0)


class Composite(torch.autograd.Function):
    """(optical depth [samples], values [samples, c], starts) -> sums of weight * value [rays, c]; see `volume.composite_torch`."""

    @staticmethod
    def forward(ctx, depth: Tensor, values: Tensor, starts: Tensor) -> Tensor:
        depth, values, starts = depth.detach().contiguous(), values.detach().contiguous(), starts.contiguous()
        rays, c = len(starts) - 1, values.shape[1]
        out = values.new_empty(rays, c)
        with torch.cuda.device_of(depth):
            _composite[(rays,)](depth, values, starts, out, c, triton.next_power_of_2(c), SAMPLES, num_warps=1)
        ctx.save_for_backward(depth, values, starts, out)
        return out

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        depth, values, starts, out = ctx.saved_tensors
        rays, c = out.shape
        grads = torch.empty_like(depth), torch.empty_like(values)
        with torch.cuda.device_of(depth):
            _composite_backward[(rays,)](
                depth, values, starts, out, upstream[0].contiguous(), *grads, c, triton.next_power_of_2(c), SAMPLES, num_warps=1
            )
        return *grads, None


def composite(
    depth: Float[Tensor, "samples"], values: Float[Tensor, "samples c"], starts: Int64[Tensor, "edges"]
) -> Float[Tensor, "edges-1 c"]:
    """`volume.composite_torch` on a GPU."""
    out: Tensor = Composite.apply(depth, values, starts)
    return out


def probe(device: torch.device) -> None:
    """March, hide and composite one ray on a GPU, forward and backward; raises where Triton cannot."""
    one = torch.ones(1, device=device)
    full = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
    starts, t_mid = march(full, 1.0, 0 * one.expand(1, 3), one.expand(1, 3), 0 * one, one, one / 2, 0.5)
    depth = torch.ones_like(t_mid, requires_grad=True)
    out = composite(depth, one.expand(len(t_mid), 1), starts).sum()
    out.backward()
    assert depth.grad is not None
    check = [len(t_mid), int(visible(depth, starts, 0.1).sum()), *torch.stack([1 - out.detach(), depth.grad.sum() / 2]).tolist()]
    if max(abs(value - wanted) for value, wanted in zip(check, (2, 2, exp(-2), exp(-2)), strict=True)) > 1e-3:
        raise ValueError(f"it finds {check}")
