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
def _corner(cx, cy, cz, corner, resolution, size, dense):
    x, y, z = cx + (corner >> 2 & 1), cy + (corner >> 1 & 1), cz + (corner & 1)
    if dense:
        return (x + resolution * (y + resolution * z)) % size
    hashed = np.uint32(x) ^ np.uint32(y * 2654435761) ^ np.uint32(z * 805459861)
    return hashed & np.uint32(size - 1)


@njit(cache=True, parallel=True, fastmath=_FAST)
def _forward(points, table, scales, resolutions, offsets, dense, out):
    levels, features = len(scales), table.shape[1]
    chunks = (len(points) + CHUNK - 1) // CHUNK
    for task in prange(levels * chunks):
        level, chunk = task // chunks, task % chunks
        scale, resolution, offset = scales[level], resolutions[level], offsets[level]
        size = offsets[level + 1] - offset
        for i in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(points))):
            px = points[i, 0] * scale + np.float32(0.5)
            py = points[i, 1] * scale + np.float32(0.5)
            pz = points[i, 2] * scale + np.float32(0.5)
            cx, cy, cz = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            fx, fy, fz = px - np.float32(cx), py - np.float32(cy), pz - np.float32(cz)
            for f in range(features):
                out[i, level * features + f] = 0
            for corner in range(8):
                row = offset + np.int64(_corner(cx, cy, cz, corner, resolution, size, dense[level]))
                wx = fx if corner >> 2 & 1 else np.float32(1) - fx
                wy = fy if corner >> 1 & 1 else np.float32(1) - fy
                wz = fz if corner & 1 else np.float32(1) - fz
                weight = wx * wy * wz
                for f in range(features):
                    out[i, level * features + f] += weight * table[row, f]


@njit(cache=True, parallel=True, fastmath=_FAST)
def _backward_table(points, upstream, scales, resolutions, offsets, dense, grad):
    """One task per level: no two tasks share an entry, and each adds in the order of the points."""
    levels, features = len(scales), grad.shape[1]
    for level in prange(levels):
        scale, resolution, offset = scales[level], resolutions[level], offsets[level]
        size = offsets[level + 1] - offset
        for i in range(len(points)):
            px = points[i, 0] * scale + np.float32(0.5)
            py = points[i, 1] * scale + np.float32(0.5)
            pz = points[i, 2] * scale + np.float32(0.5)
            cx, cy, cz = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            fx, fy, fz = px - np.float32(cx), py - np.float32(cy), pz - np.float32(cz)
            for corner in range(8):
                row = offset + np.int64(_corner(cx, cy, cz, corner, resolution, size, dense[level]))
                wx = fx if corner >> 2 & 1 else np.float32(1) - fx
                wy = fy if corner >> 1 & 1 else np.float32(1) - fy
                wz = fz if corner & 1 else np.float32(1) - fz
                weight = wx * wy * wz
                for f in range(features):
                    grad[row, f] += weight * upstream[i, level * features + f]


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
