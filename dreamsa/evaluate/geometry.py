"""Is it the thing, or a billboard? The toybox's true objects are known, so shape can be measured."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from dreamsa.render.cameras import CameraConfig, orbit
from dreamsa.scene import Scene
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build

AZIMUTHS = tuple(45.0 * i for i in range(8))
ELEVATION_DEG = 15.0


class Geometry(NamedTuple):
    iou: list[float]
    """Silhouette intersection over union per azimuth; opacity above a half counts."""
    depth_error: list[float]
    """Mean absolute depth difference where both are solid, world units (the object's radius is 0.5); NaN where nothing overlaps."""


def silhouette_iou(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float:
    """Of two opacity maps; 0 where both are empty."""
    one, other = a > 0.5, b > 0.5
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 0.0


def geometry_of(scene: Scene, camera: CameraConfig, name: str, resolution: int = 64) -> Geometry:
    """Compare a scene with the toybox's object `name`, from 8 azimuths at 15 degrees of elevation."""
    distance, focal = sum(camera.distance) / 2, sum(camera.focal) / 2
    cameras = orbit(list(AZIMUTHS), ELEVATION_DEG, distance, focal)
    truth = render_solid(build(name), cameras, resolution)
    with torch.no_grad():
        view = scene.look(cameras, resolution)
    opacity, depth = view.opacity.cpu().numpy(), view.depth.cpu().numpy()
    ious, errors = [], []
    for i in range(len(cameras)):
        ious.append(silhouette_iou(opacity[i], truth.opacity[i]))
        both = (opacity[i] > 0.5) & (truth.opacity[i] > 0.5)
        errors.append(float(np.abs(depth[i] - truth.depth[i])[both].mean()) if both.any() else float("nan"))
    return Geometry(ious, errors)
