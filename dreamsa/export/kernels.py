"""CPU kernels of the export (numba): sums along parallel lines of sight, and a triangle rasterizer."""

import numpy as np
from numba import njit, prange


@njit(cache=True)
def splat(at, values, image):
    """Add `values` [n] to `image` [u, v] at `at` [n, 2], bilinearly. Positions lie inside the image by at least one pixel."""
    for i in range(len(at)):
        u, v = int(at[i, 0]), int(at[i, 1])
        fu, fv = at[i, 0] - u, at[i, 1] - v
        image[u, v] += values[i] * (1 - fu) * (1 - fv)
        image[u, v + 1] += values[i] * (1 - fu) * fv
        image[u + 1, v] += values[i] * fu * (1 - fv)
        image[u + 1, v + 1] += values[i] * fu * fv


@njit(cache=True, parallel=True)
def least(at, image, out):
    """out = min(out, image at `at`), bilinearly."""
    for i in prange(len(at)):
        u, v = int(at[i, 0]), int(at[i, 1])
        fu, fv = at[i, 0] - u, at[i, 1] - v
        low = image[u, v] * (1 - fv) + image[u, v + 1] * fv
        high = image[u + 1, v] * (1 - fv) + image[u + 1, v + 1] * fv
        out[i] = min(out[i], low * (1 - fu) + high * fu)


@njit(cache=True)
def peak(at, values, image):
    """image = max(image, values), each value at the pixel nearest to it."""
    for i in range(len(at)):
        u, v = int(at[i, 0] + 0.5), int(at[i, 1] + 0.5)
        image[u, v] = max(image[u, v], values[i])


@njit(cache=True)
def rasterize(corners, faces, face_of, weights, nearness):
    """Which triangle covers each pixel centre, and where.

    Args:
        corners: [n, 3]: x (right) and y (down) in pixels, and nearness (larger hides smaller, must be linear on the picture,
            such as 1 / depth).
        faces: [m, 3] corner indices; both windings are drawn.
        face_of: int32 [h, w], out: the face, -1 where there is none (set by the caller).
        weights: float32 [h, w, 3], out: barycentric weights on the picture.
        nearness: float32 [h, w], out: of what is seen (set to -inf by the caller).
    """
    height, width = face_of.shape
    for face in range(len(faces)):
        a, b, c = corners[faces[face, 0]], corners[faces[face, 1]], corners[faces[face, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        left = max(int(np.ceil(min(a[0], b[0], c[0]) - 0.5)), 0)
        right = min(int(np.floor(max(a[0], b[0], c[0]) - 0.5)), width - 1)
        top = max(int(np.ceil(min(a[1], b[1], c[1]) - 0.5)), 0)
        bottom = min(int(np.floor(max(a[1], b[1], c[1]) - 0.5)), height - 1)
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                first = ((b[0] - x) * (c[1] - y) - (b[1] - y) * (c[0] - x)) / area
                second = ((c[0] - x) * (a[1] - y) - (c[1] - y) * (a[0] - x)) / area
                third = 1 - first - second
                if first < 0 or second < 0 or third < 0:
                    continue
                near = first * a[2] + second * b[2] + third * c[2]
                if near > nearness[row, column]:
                    nearness[row, column] = near
                    face_of[row, column] = face
                    weights[row, column, 0] = first
                    weights[row, column, 1] = second
                    weights[row, column, 2] = third
