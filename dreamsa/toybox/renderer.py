"""Sphere tracing of toybox objects (Hart 1996), from the same cameras as the NeRF's."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from dreamsa.compiled import njit, prange
from dreamsa.rendering.cameras import Cameras, camera_rays
from dreamsa.toybox.shapes import Solid, scene_distance


@dataclass(frozen=True)
class Light:
    """A directional light in world axes; half-Lambert shading, so that no side is black."""

    azimuth_deg: float = 30.0
    elevation_deg: float = 55.0
    ambient: float = 0.62
    """Brightness of a surface that faces away from the light; one that faces it has 1."""


class Render(NamedTuple):
    rgb: Float32[np.ndarray, "b 3 h w"]  # in [0, 1], over the background
    opacity: Float32[np.ndarray, "b h w"]  # in [0, 1]
    depth: Float32[np.ndarray, "b h w"]  # world units along the ray; 0 where opacity is 0


@njit(cache=True)
def _distance(kinds, rows, x, y, z):
    return scene_distance(kinds, rows, x, y, z)[0]


@njit(cache=True, parallel=True)
def _trace(kinds, rows, colours, reach, origins, directions, light, ambient, out):
    """out [rays, 5]: rgb, hit, depth."""
    for i in prange(len(origins)):
        ox, oy, oz = origins[i]
        dx, dy, dz = directions[i]
        b = ox * dx + oy * dy + oz * dz
        disc = b * b - (ox * ox + oy * oy + oz * oz) + reach * reach
        if disc <= 0.0:
            continue
        t, end = max(-b - np.sqrt(disc), 0.0), -b + np.sqrt(disc)
        for _ in range(96):
            d, owner = scene_distance(kinds, rows, ox + t * dx, oy + t * dy, oz + t * dz)
            if d < 7e-4:
                e = 1e-3
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                nx = _distance(kinds, rows, x + e, y, z) - _distance(kinds, rows, x - e, y, z)
                ny = _distance(kinds, rows, x, y + e, z) - _distance(kinds, rows, x, y - e, z)
                nz = _distance(kinds, rows, x, y, z + e) - _distance(kinds, rows, x, y, z - e)
                length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
                lit = 0.5 + 0.5 * (nx * light[0] + ny * light[1] + nz * light[2]) / length
                shade = ambient + (1.0 - ambient) * lit
                for c in range(3):
                    out[i, c] = colours[owner, c] * shade
                out[i, 3] = 1.0
                out[i, 4] = t
                break
            t += 0.85 * d  # ellipsoids give a bound, not the distance
            if t > end:
                break


def render_solid(
    solid: Solid,
    cameras: Cameras,
    resolution: int = 64,
    background: Float[np.ndarray, "b 3"] | Float[Tensor, "b 3"] | float = 1.0,
    light: Light = Light(),
    supersample: int = 2,
) -> Render:
    """Render one object from each camera.

    Args:
        background: A grey in [0, 1], or one colour per camera.
        supersample: Rays per pixel side; depth is the mean over those that hit.
    """
    size = resolution * supersample
    origins, directions = (
        np.ascontiguousarray(value.reshape(-1, 3).double().numpy())
        for value in camera_rays(cameras, size, size)
    )
    azimuth, elevation = np.deg2rad(light.azimuth_deg), np.deg2rad(light.elevation_deg)
    flat = np.cos(elevation)
    towards = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    out = np.zeros((len(cameras) * size**2, 5))
    _trace(*solid, origins, directions, towards, light.ambient, out)
    blocks = (len(cameras), resolution, supersample, resolution, supersample, 5)
    pixels = np.moveaxis(out.reshape(blocks).mean((2, 4)), -1, 1)  # [b, 5, h, w], premultiplied
    pixels = pixels.astype(np.float32)
    opacity, depth = pixels[:, 3], pixels[:, 4]
    colours = np.broadcast_to(np.asarray(background, dtype=np.float32), (len(cameras), 3))
    rgb = np.clip(pixels[:, :3] + (1 - opacity[:, None]) * colours[:, :, None, None], 0, 1)
    return Render(rgb, opacity, np.where(opacity > 0, depth / np.maximum(opacity, 1e-6), 0))
