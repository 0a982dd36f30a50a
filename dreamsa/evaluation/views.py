"""Fixed cameras of every evaluation: azimuths 45 degrees apart, elevation 15 degrees."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dreamsa.config import CameraConfig
from dreamsa.media import Images, contact_sheet, to_uint8
from dreamsa.rendering.cameras import Cameras, viewing_cameras
from dreamsa.scene import Scene
from dreamsa.toybox.renderer import Light, render_solid
from dreamsa.toybox.shapes import TOYS, build

AZIMUTHS = tuple(45.0 * i for i in range(8))
"""Degrees."""
QUARTERS = AZIMUTHS[::2]
"""Azimuths of evaluations during an edit, degrees."""
ELEVATION_DEG = 15.0
GREY = 0.7
"""Background of comparisons with a true object."""
FLAT = Light(ambient=1.0)
"""Light without shading."""


class Views(NamedTuple):
    """Images of a scene or a true object from fixed cameras at ELEVATION_DEG."""

    rgb: Images  # in [0, 1]
    opacity: Float[Tensor, "b h w"]  # in [0, 1]
    depth: Float[Tensor, "b h w"]  # world units
    azimuths_deg: tuple[float, ...]


def fixed_cameras(camera: CameraConfig, azimuths_deg: Sequence[float] = AZIMUTHS) -> Cameras:
    """The cameras of `fixed_views`."""
    return viewing_cameras(camera, list(azimuths_deg), ELEVATION_DEG)


def fixed_views(
    scene: Scene,
    camera: CameraConfig,
    azimuths_deg: tuple[float, ...] = AZIMUTHS,
    resolution: int = 64,
    background: float | None = None,
) -> Views:
    """Render a scene from fixed cameras over a grey in [0, 1] or its own background; on the CPU."""
    image = scene.view(fixed_cameras(camera, azimuths_deg), resolution, background)
    rgb = image.rgb.cpu().clamp(0, 1)
    return Views(rgb, image.opacity.cpu(), image.depth.cpu(), azimuths_deg)


@lru_cache(maxsize=64)
def true_views(
    camera: CameraConfig,
    name: str,
    colour: str | None = None,
    variant: int = 0,
    light: Light = Light(),
) -> Views:
    """The toybox's true object from the cameras of `fixed_views`: 64 x 64, over GREY, 2 x 2 rays
    per pixel.

    Args:
        name, colour, variant: As `toybox.shapes.build` takes them.
    """
    solid = build(name, colour, variant)
    render = render_solid(solid, fixed_cameras(camera), background=GREY, light=light)
    rgb, opacity, depth = map(torch.from_numpy, render)
    return Views(rgb, opacity, depth, AZIMUTHS)


def valid_views(camera: CameraConfig, name: str, colour: str | None = None) -> list[Views]:
    """`true_views` of each valid colour: a single one if it is named."""
    variants = 1 if colour else len(TOYS[name].natural)
    return [true_views(camera, name, colour, variant) for variant in range(variants)]


def overlap(one: Views, other: Views) -> Bool[Tensor, "b h w"]:
    """Pixels inside both silhouettes."""
    return (one.opacity > 0.5) & (other.opacity > 0.5)


def comparable_views(scene: Scene, camera: CameraConfig) -> Views:
    """A scene as `true_views` shows an object: 64 x 64, over GREY, 2 x 2 rays per pixel."""
    fine = fixed_views(scene, camera, resolution=128, background=GREY)
    opacity = avg_pool2d(fine.opacity, 2)
    depth = avg_pool2d(fine.opacity * fine.depth, 2) / opacity.clamp(min=1e-6)
    return Views(avg_pool2d(fine.rgb, 2), opacity, depth, AZIMUTHS)


def strip(*rows: Images) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Rows of images, one below the other."""
    return contact_sheet(to_uint8(torch.cat(rows)), len(rows[0]))
