"""The kernels of `kernels_torch` on a CPU (numba). Results are the same for any thread count."""

import numpy as np
import torch
from torch import Tensor

from dreamsa.compiled import njit, prange


@njit(cache=True, inline="always")
def _occupied(grid, radius, origins, directions, ray, t):
    """In float32, so that a sample is in the same cell as its point (`occupancy.in_cells`)."""
    n = grid.shape[0]
    scale, radius = np.float32(n / (2 * radius)), np.float32(radius)
    i = min(max(int((origins[ray, 0] + t * directions[ray, 0] + radius) * scale), 0), n - 1)
    j = min(max(int((origins[ray, 1] + t * directions[ray, 1] + radius) * scale), 0), n - 1)
    k = min(max(int((origins[ray, 2] + t * directions[ray, 2] + radius) * scale), 0), n - 1)
    return grid[i, j, k]


@njit(cache=True, parallel=True)
def _march(grid, radius, origins, directions, near, far, first, step, starts, out, fill):
    """Write the midpoints of each ray's samples from `starts` on; without `fill`, their number."""
    for ray in prange(len(origins)):
        at = starts[ray] if fill else 0
        if fill and starts[ray + 1] == at:
            continue
        steps = int(np.ceil((far[ray] - near[ray]) / step)) if far[ray] > near[ray] else 0
        for k in range(steps):
            t = np.float32(near[ray] + (k + first[ray]) * step)
            if t >= far[ray]:
                break
            if _occupied(grid, radius, origins, directions, ray, t):
                if fill:
                    out[at] = t
                at += 1
        if not fill:
            out[ray] = at


def march(
    occupied: Tensor, radius: float, origins, directions, near, far, first, step: float
) -> tuple[Tensor, Tensor]:
    rays = tuple(value.contiguous().numpy() for value in (origins, directions, near, far, first))
    scene = occupied.numpy(), radius, *rays, step
    starts = np.zeros(len(origins) + 1, np.int64)
    _march(*scene, starts, starts[1:], False)  # pyright: ignore[reportCallIssue]
    starts = starts.cumsum()
    t_mid = np.empty(starts[-1], np.float32)
    _march(*scene, starts, t_mid, True)  # pyright: ignore[reportCallIssue]
    return torch.from_numpy(starts), torch.from_numpy(t_mid)


@njit(cache=True, parallel=True)
def _visible(depth, starts, limit, keep):
    for ray in prange(len(starts) - 1):
        optical = 0.0
        for i in range(starts[ray], starts[ray + 1]):
            keep[i] = optical < limit
            optical += depth[i]


def visible(depth: Tensor, starts: Tensor, threshold: float) -> Tensor:
    keep = np.empty(len(depth), np.bool_)
    _visible(depth.detach().contiguous().numpy(), starts.numpy(), -np.log(threshold), keep)
    return torch.from_numpy(keep)


@njit(cache=True, parallel=True)
def _composite(depth, values, starts, weights, out):
    for ray in prange(len(out)):
        optical = 0.0
        for i in range(starts[ray], starts[ray + 1]):
            weights[i] = np.exp(-optical) * -np.expm1(-depth[i])
            optical += depth[i]
        for c in range(values.shape[1]):
            total = 0.0
            for i in range(starts[ray], starts[ray + 1]):
                total += weights[i] * values[i, c]
            out[ray, c] = total


@njit(cache=True, parallel=True)
def _composite_backward(depth, values, starts, weights, upstream, grad_depth, grad_values):
    for ray in prange(len(upstream)):
        optical = 0.0
        for i in range(starts[ray], starts[ray + 1]):
            optical += depth[i]
        behind = 0.0  # sum of weight * its gradient over the samples behind i
        for i in range(starts[ray + 1] - 1, starts[ray] - 1, -1):
            total = 0.0
            for c in range(values.shape[1]):
                total += upstream[ray, c] * values[i, c]
                grad_values[i, c] = upstream[ray, c] * weights[i]
            grad_depth[i] = total  # rounded to the dtype
            gradient = grad_depth[i]
            grad_depth[i] = np.exp(-optical) * gradient - behind
            behind += weights[i] * gradient
            optical -= depth[i]


class Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, depth: Tensor, values: Tensor, starts: Tensor) -> Tensor:
        depth, values = depth.detach().contiguous(), values.detach().contiguous()
        weights, out = torch.empty_like(depth), values.new_empty(len(starts) - 1, values.shape[1])
        tensors = depth, values, starts, weights
        _composite(*(tensor.numpy() for tensor in (*tensors, out)))
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        depth, values, *_ = ctx.saved_tensors
        grads = torch.empty_like(depth), torch.empty_like(values)
        tensors = *ctx.saved_tensors, upstream[0].contiguous(), *grads
        _composite_backward(*(tensor.numpy() for tensor in tensors))
        return *grads, None


def composite(depth: Tensor, values: Tensor, starts: Tensor) -> Tensor:
    return Composite.apply(depth, values, starts)  # pyright: ignore[reportReturnType]
