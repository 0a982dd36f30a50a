"""The hash encoding on a CPU: numba kernels, levels in parallel, gradients bit-identical for every number of threads."""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from dreamsa.fields.hashgrid import Encode, HashGridConfig

CHUNK = 8192
"""Points per forward task: enough to keep a level's table in the cache."""
_FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(cache=True, inline="always")
def _rows_and_weights(points, i, scale, resolution, offset, size, dense, rows, weights):
    """The eight table rows around a point on one level, and their trilinear weights."""
    px = points[i, 0] * scale + np.float32(0.5)
    py = points[i, 1] * scale + np.float32(0.5)
    pz = points[i, 2] * scale + np.float32(0.5)
    x, y, z = np.int32(px), np.int32(py), np.int32(pz)  # positions are positive, so this is floor
    fx, fy, fz = px - np.float32(x), py - np.float32(y), pz - np.float32(z)
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    weights[0], weights[1], weights[2], weights[3] = gx * gy * gz, gx * gy * fz, gx * fy * gz, gx * fy * fz
    weights[4], weights[5], weights[6], weights[7] = fx * gy * gz, fx * gy * fz, fx * fy * gz, fx * fy * fz
    if dense:
        row = np.int64(x) + resolution * (np.int64(y) + resolution * np.int64(z))
        for corner in range(8):
            index = row + (corner >> 2 & 1) + resolution * ((corner >> 1 & 1) + resolution * (corner & 1))
            while index >= size:  # a point on the cube's far faces wraps around, as in tiny-cuda-nn
                index -= size
            rows[corner] = np.uint64(offset + index)
    else:
        mask = np.uint32(size - 1)
        y0, z0 = np.uint32(y) * np.uint32(2654435761), np.uint32(z) * np.uint32(805459861)
        y1, z1 = y0 + np.uint32(2654435761), z0 + np.uint32(805459861)
        x0, x1 = np.uint32(x), np.uint32(x + 1)
        first = np.uint64(offset)
        rows[0], rows[1] = first + np.uint64((x0 ^ y0 ^ z0) & mask), first + np.uint64((x0 ^ y0 ^ z1) & mask)
        rows[2], rows[3] = first + np.uint64((x0 ^ y1 ^ z0) & mask), first + np.uint64((x0 ^ y1 ^ z1) & mask)
        rows[4], rows[5] = first + np.uint64((x1 ^ y0 ^ z0) & mask), first + np.uint64((x1 ^ y0 ^ z1) & mask)
        rows[6], rows[7] = first + np.uint64((x1 ^ y1 ^ z0) & mask), first + np.uint64((x1 ^ y1 ^ z1) & mask)


@njit(cache=True, parallel=True, fastmath=_FAST)
def _forward(points, table, scales, resolutions, offsets, dense, out):
    levels, features = len(scales), table.shape[1]
    chunks = (len(points) + CHUNK - 1) // CHUNK
    for task in prange(levels * chunks):
        level, chunk = task // chunks, task % chunks
        scale, resolution, offset = scales[level], resolutions[level], offsets[level]
        size, is_dense = offsets[level + 1] - offset, dense[level]
        rows, weights = np.empty(8, np.uint64), np.empty(8, np.float32)
        for i in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(points))):
            _rows_and_weights(points, i, scale, resolution, offset, size, is_dense, rows, weights)
            column = level * features
            if features == 2:  # the usual case, with sums in registers
                first, second = np.float32(0), np.float32(0)
                for corner in range(8):
                    first += weights[corner] * table[rows[corner], 0]
                    second += weights[corner] * table[rows[corner], 1]
                out[i, column], out[i, column + 1] = first, second
            else:
                for f in range(features):
                    total = np.float32(0)
                    for corner in range(8):
                        total += weights[corner] * table[rows[corner], f]
                    out[i, column + f] = total


@njit(cache=True, parallel=True, fastmath=_FAST)
def _backward_table(points, upstream, scales, resolutions, offsets, dense, grad):
    """One task per level: no two tasks share an entry, and each adds in the order of the points."""
    levels, features = len(scales), grad.shape[1]
    for level in prange(levels):
        scale, resolution, offset = scales[level], resolutions[level], offsets[level]
        size, is_dense = offsets[level + 1] - offset, dense[level]
        rows, weights = np.empty(8, np.uint64), np.empty(8, np.float32)
        for i in range(len(points)):
            _rows_and_weights(points, i, scale, resolution, offset, size, is_dense, rows, weights)
            column = level * features
            if features == 2:
                first, second = upstream[i, column], upstream[i, column + 1]
                for corner in range(8):
                    grad[rows[corner], 0] += weights[corner] * first
                    grad[rows[corner], 1] += weights[corner] * second
            else:
                for f in range(features):
                    for corner in range(8):
                        grad[rows[corner], f] += weights[corner] * upstream[i, column + f]


def encode_numba(config: HashGridConfig) -> Encode:
    """The encoding for float32 CPU tensors; differentiable in the table, not in the points."""
    scales = np.array(config.scales, dtype=np.float32)
    resolutions = np.array(config.resolutions, dtype=np.int64)
    offsets = np.array(config.offsets, dtype=np.int64)
    dense = np.array([config.is_dense(level) for level in range(config.levels)])

    class Encoding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, points: Tensor, table: Tensor) -> Tensor:
            points = points.detach().contiguous()
            out = torch.empty(len(points), config.width)
            _forward(points.numpy(), table.detach().numpy(), scales, resolutions, offsets, dense, out.numpy())
            ctx.save_for_backward(points)
            return out

        @staticmethod
        def backward(ctx, *upstream: Tensor) -> tuple[None, Tensor]:
            (points,) = ctx.saved_tensors
            grad = torch.zeros(config.entries, config.features)
            flowing = upstream[0].contiguous().numpy()
            _backward_table(points.numpy(), flowing, scales, resolutions, offsets, dense, grad.numpy())
            return None, grad

    def encode(points: Tensor, table: Tensor) -> Tensor:
        if points.requires_grad:
            raise ValueError("The numba hash grid has no gradient in the points. Use backend torch, or finite differences.")
        return Encoding.apply(points, table)

    return encode
