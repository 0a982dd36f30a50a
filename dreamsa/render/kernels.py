"""CPU kernels of the renderer (numba): marching, transmittance weights, accumulation. One ray is one task, so results do not
depend on the number of threads. The references in `volume.py` are the definition; tests hold the two together."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numba import njit, prange
from torch import Tensor


@njit(cache=True, inline="always")
def _occupied(grid, radius, x, y, z):
    n = grid.shape[0]
    scale = n / (2 * radius)
    i = min(max(int((x + radius) * scale), 0), n - 1)
    j = min(max(int((y + radius) * scale), 0), n - 1)
    k = min(max(int((z + radius) * scale), 0), n - 1)
    return grid[i, j, k]


@njit(cache=True, parallel=True)
def _count(grid, radius, origins, directions, near, far, first, step, counts):
    for ray in prange(len(origins)):
        total = 0
        steps = int(np.ceil((far[ray] - near[ray]) / step)) if far[ray] > near[ray] else 0
        for k in range(steps):
            t = near[ray] + (k + first[ray]) * step
            if t >= far[ray]:
                break
            if _occupied(
                grid,
                radius,
                origins[ray, 0] + t * directions[ray, 0],
                origins[ray, 1] + t * directions[ray, 1],
                origins[ray, 2] + t * directions[ray, 2],
            ):
                total += 1
        counts[ray] = total


@njit(cache=True, parallel=True)
def _fill(grid, radius, origins, directions, near, far, first, step, starts, t_mid):
    for ray in prange(len(origins)):
        at = starts[ray]
        if starts[ray + 1] == at:
            continue
        steps = int(np.ceil((far[ray] - near[ray]) / step))
        for k in range(steps):
            t = near[ray] + (k + first[ray]) * step
            if t >= far[ray]:
                break
            if _occupied(
                grid,
                radius,
                origins[ray, 0] + t * directions[ray, 0],
                origins[ray, 1] + t * directions[ray, 1],
                origins[ray, 2] + t * directions[ray, 2],
            ):
                t_mid[at] = t
                at += 1


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
    """`volume.march_torch` on the CPU."""
    rays = tuple(value.contiguous().numpy() for value in (origins, directions, near, far, first))
    counts = np.empty(len(origins), np.int64)
    _count(occupied.numpy(), radius, *rays, step, counts)  # pyright: ignore[reportCallIssue]
    starts = np.zeros(len(origins) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    t_mid = np.empty(starts[-1], np.float32)
    _fill(occupied.numpy(), radius, *rays, step, starts, t_mid)  # pyright: ignore[reportCallIssue]
    return torch.from_numpy(starts), torch.from_numpy(t_mid)


@njit(cache=True, parallel=True)
def _visible(depth, starts, most, keep):
    for ray in prange(len(starts) - 1):
        optical = 0.0
        for i in range(starts[ray], starts[ray + 1]):
            keep[i] = optical < most
            optical += depth[i]


def visible(depth: Float[Tensor, "samples"], starts: Int64[Tensor, "edges"], threshold: float) -> Bool[Tensor, "samples"]:
    """`volume.visible_torch` on the CPU."""
    keep = np.empty(len(depth), np.bool_)
    _visible(depth.detach().contiguous().numpy(), starts.numpy(), -np.log(threshold), keep)
    return torch.from_numpy(keep)


@njit(cache=True, parallel=True)
def _weights(depth, starts, weights):
    for ray in prange(len(starts) - 1):
        optical = 0.0
        for i in range(starts[ray], starts[ray + 1]):
            weights[i] = np.exp(-optical) * -np.expm1(-depth[i])
            optical += depth[i]


@njit(cache=True, parallel=True)
def _weights_backward(depth, starts, weights, upstream, grad):
    for ray in prange(len(starts) - 1):
        optical = 0.0
        for i in range(starts[ray], starts[ray + 1]):
            optical += depth[i]
        behind = 0.0  # sum over the samples behind i of weight * upstream
        for i in range(starts[ray + 1] - 1, starts[ray] - 1, -1):
            grad[i] = np.exp(-optical) * upstream[i] - behind
            behind += weights[i] * upstream[i]
            optical -= depth[i]


class SampleWeights(torch.autograd.Function):
    """(optical depth [samples], starts) -> weights [samples]; see `volume.sample_weights`."""

    @staticmethod
    def forward(ctx, depth: Tensor, starts: Tensor) -> Tensor:
        depth = depth.detach().contiguous()
        weights = torch.empty_like(depth)
        _weights(depth.numpy(), starts.numpy(), weights.numpy())
        ctx.save_for_backward(depth, starts, weights)
        return weights

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, None]:
        depth, starts, weights = ctx.saved_tensors
        grad = torch.empty_like(depth)
        _weights_backward(depth.numpy(), starts.numpy(), weights.numpy(), upstream[0].contiguous().numpy(), grad.numpy())
        return grad, None


@njit(cache=True, parallel=True)
def _accumulate(weights, values, starts, out):
    for ray in prange(len(starts) - 1):
        for c in range(values.shape[1]):
            total = 0.0
            for i in range(starts[ray], starts[ray + 1]):
                total += weights[i] * values[i, c]
            out[ray, c] = total


@njit(cache=True, parallel=True)
def _accumulate_backward(weights, values, starts, upstream, grad_weights, grad_values):
    for ray in prange(len(starts) - 1):
        for i in range(starts[ray], starts[ray + 1]):
            total = 0.0
            for c in range(values.shape[1]):
                total += upstream[ray, c] * values[i, c]
                grad_values[i, c] = upstream[ray, c] * weights[i]
            grad_weights[i] = total


class Accumulate(torch.autograd.Function):
    """(weights [samples], values [samples, c], starts) -> [rays, c]; see `volume.accumulate`."""

    @staticmethod
    def forward(ctx, weights: Tensor, values: Tensor, starts: Tensor) -> Tensor:
        weights, values = weights.detach().contiguous(), values.detach().contiguous()
        out = values.new_empty(len(starts) - 1, values.shape[1])
        _accumulate(weights.numpy(), values.numpy(), starts.numpy(), out.numpy())
        ctx.save_for_backward(weights, values, starts)
        return out

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, values, starts = ctx.saved_tensors
        grad_weights, grad_values = torch.empty_like(weights), torch.empty_like(values)
        flowing = upstream[0].contiguous().numpy()
        _accumulate_backward(weights.numpy(), values.numpy(), starts.numpy(), flowing, grad_weights.numpy(), grad_values.numpy())
        return grad_weights, grad_values, None


def composite(
    depth: Float[Tensor, "samples"], values: Float[Tensor, "samples c"], starts: Int64[Tensor, "edges"]
) -> Float[Tensor, "edges-1 c"]:
    """`volume.composite_torch` on the CPU."""
    return Accumulate.apply(SampleWeights.apply(depth, starts), values, starts)  # pyright: ignore[reportReturnType]
