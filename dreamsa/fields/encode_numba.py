"""The hash encoding on a CPU (numba). Gradients are bit-identical for every number of threads."""

from functools import partial

import numpy as np
from torch import Tensor

from dreamsa.compiled import njit, prange
from dreamsa.fields.layout import Encode, Layout, differentiable

CHUNK = 8192
"""Points per forward task: large enough to reuse a level's table in the cache."""
_FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(cache=True, inline="always")
def _rows_and_weights(points, i, scale, resolution, offset, size, dense, rows, weights):
    """The eight table rows around a point on one level, and their trilinear weights."""
    px = points[i, 0] * scale + np.float32(0.5)
    py = points[i, 1] * scale + np.float32(0.5)
    pz = points[i, 2] * scale + np.float32(0.5)
    x, y, z = np.int32(px), np.int32(py), np.int32(pz)  # floor, because positions are positive
    fx, fy, fz = px - np.float32(x), py - np.float32(y), pz - np.float32(z)
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    weights[0] = gx * gy * gz
    weights[1] = gx * gy * fz
    weights[2] = gx * fy * gz
    weights[3] = gx * fy * fz
    weights[4] = fx * gy * gz
    weights[5] = fx * gy * fz
    weights[6] = fx * fy * gz
    weights[7] = fx * fy * fz
    if dense:
        row = np.int64(x) + resolution * (np.int64(y) + resolution * np.int64(z))
        for corner in range(8):
            dx, dy, dz = corner >> 2 & 1, corner >> 1 & 1, corner & 1
            index = row + dx + resolution * (dy + resolution * dz)
            while index >= size:  # points on the cube's far faces wrap around, as in tiny-cuda-nn
                index -= size
            rows[corner] = np.uint64(offset + index)
    else:
        mask = np.uint32(size - 1)
        y0, z0 = np.uint32(y) * np.uint32(2654435761), np.uint32(z) * np.uint32(805459861)
        y1, z1 = y0 + np.uint32(2654435761), z0 + np.uint32(805459861)
        x0, x1 = np.uint32(x), np.uint32(x + 1)
        first = np.uint64(offset)
        rows[0] = first + np.uint64((x0 ^ y0 ^ z0) & mask)
        rows[1] = first + np.uint64((x0 ^ y0 ^ z1) & mask)
        rows[2] = first + np.uint64((x0 ^ y1 ^ z0) & mask)
        rows[3] = first + np.uint64((x0 ^ y1 ^ z1) & mask)
        rows[4] = first + np.uint64((x1 ^ y0 ^ z0) & mask)
        rows[5] = first + np.uint64((x1 ^ y0 ^ z1) & mask)
        rows[6] = first + np.uint64((x1 ^ y1 ^ z0) & mask)
        rows[7] = first + np.uint64((x1 ^ y1 ^ z1) & mask)


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
            if features == 2:  # the default, with sums in registers
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
def _backward(points, upstream, scales, resolutions, offsets, dense, grad):
    """One task per level: tasks share no entries, and each sums in the order of the points."""
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


def encode_numba(layout: Layout) -> Encode:
    """The encoding on a CPU: `differentiable`."""
    scales = np.array(layout.scales, dtype=np.float32)
    resolutions = np.array(layout.resolutions, dtype=np.int64)
    offsets = np.array(layout.offsets, dtype=np.int64)
    dense = np.array([layout.is_dense(level) for level in range(layout.config.levels)])
    levels = scales, resolutions, offsets, dense

    def launch(kernel, points: Tensor, values: Tensor, out: Tensor) -> None:
        kernel(points.numpy(), values.numpy(), *levels, out.numpy())

    return differentiable(layout, partial(launch, _forward), partial(launch, _backward))
