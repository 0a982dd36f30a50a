"""CPU kernels of meshing (numba): bilinear splatting and gathering, and a triangle rasterizer."""

import numpy as np

from dreamsa.compiled import njit, prange


@njit(cache=True)
def splat_sum(pixels, values, image):
    """Add `values` [n] bilinearly to `image` [u, v] at `pixels` [n, 2], at least a pixel inside."""
    for i in range(len(pixels)):
        u, v = int(pixels[i, 0]), int(pixels[i, 1])
        fu, fv = pixels[i, 0] - u, pixels[i, 1] - v
        image[u, v] += values[i] * (1 - fu) * (1 - fv)
        image[u, v + 1] += values[i] * (1 - fu) * fv
        image[u + 1, v] += values[i] * fu * (1 - fv)
        image[u + 1, v + 1] += values[i] * fu * fv


@njit(cache=True, parallel=True)
def gather_min(pixels, image, out):
    """out = min(out, image at `pixels`), with bilinear interpolation."""
    for i in prange(len(pixels)):
        u, v = int(pixels[i, 0]), int(pixels[i, 1])
        fu, fv = pixels[i, 0] - u, pixels[i, 1] - v
        low = image[u, v] * (1 - fv) + image[u, v + 1] * fv
        high = image[u + 1, v] * (1 - fv) + image[u + 1, v + 1] * fv
        out[i] = min(out[i], low * (1 - fu) + high * fu)


@njit(cache=True)
def splat_max(pixels, values, image):
    """image = max(image, values), each value at its nearest pixel."""
    for i in range(len(pixels)):
        u, v = int(pixels[i, 0] + 0.5), int(pixels[i, 1] + 0.5)
        image[u, v] = max(image[u, v], values[i])


@njit(cache=True)
def rasterize(corners, faces, face_of, weights, z_buffer):
    """Find the frontmost triangle at each pixel centre.

    Args:
        corners: [n, 3]: x (right) and y (down) in pixels, and 1 / depth or any other value that is
            linear in the image and larger in front.
        faces: [m, 3] corner indices, of either winding.
        face_of: int32 [h, w], output: index of the face. Pass -1, which stays where there is none.
        weights: float32 [h, w, 3], output: barycentric weights in the image.
        z_buffer: float32 [h, w], output: 1 / depth of the face. Pass -inf.
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
                if near > z_buffer[row, column]:
                    z_buffer[row, column] = near
                    face_of[row, column] = face
                    weights[row, column, 0] = first
                    weights[row, column, 1] = second
                    weights[row, column, 2] = third
