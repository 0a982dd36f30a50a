"""Fixed cameras of every evaluation: azimuths 45 degrees apart, elevation 15 degrees."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreamsa.config import CameraConfig
from dreamsa.media import Images, contact_sheet, to_uint8
from dreamsa.rendering.cameras import Cameras, viewing_cameras
from dreamsa.scene import Scene

AZIMUTHS = tuple(45.0 * i for i in range(8))
"""Degrees."""
QUARTERS = AZIMUTHS[::2]
"""Azimuths of evaluations during an edit, degrees."""
ELEVATION_DEG = 15.0


class Views(NamedTuple):
    """Images of a scene from fixed cameras at ELEVATION_DEG."""

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
) -> Views:
    """Render a scene from fixed cameras over its own background; on the CPU."""
    image = scene.view(fixed_cameras(camera, azimuths_deg), resolution)
    rgb = image.rgb.cpu().clamp(0, 1)
    return Views(rgb, image.opacity.cpu(), image.depth.cpu(), azimuths_deg)


def strip(*rows: Images) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Rows of images, one below the other."""
    return contact_sheet(to_uint8(torch.cat(rows)), len(rows[0]))
