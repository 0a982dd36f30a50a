"""Shape against the toybox's true objects: is a scene solid, or a billboard?"""

from typing import NamedTuple

import numpy as np
import torch

from dreamsa.config import CameraConfig
from dreamsa.evaluation.metrics import silhouette_iou
from dreamsa.evaluation.views import fixed_cameras, fixed_views
from dreamsa.scene import Scene
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build


class Geometry(NamedTuple):
    """Per azimuth of `views.AZIMUTHS`."""

    iou: list[float]
    """Intersection over union of the silhouettes."""
    depth_error: list[float]
    """Mean absolute depth difference where both are opaque, world units; NaN without overlap."""


def geometry_of(scene: Scene, camera: CameraConfig, name: str) -> Geometry:
    """Compare a scene with the toybox's object `name`."""
    truth, views = render_solid(build(name), fixed_cameras(camera), 64), fixed_views(scene, camera)
    errors = []
    for depth, opacity, true_depth, true_opacity in zip(
        views.depth.numpy(), views.opacity.numpy(), truth.depth, truth.opacity, strict=True
    ):
        both = (opacity > 0.5) & (true_opacity > 0.5)
        difference = np.abs(depth - true_depth)[both]
        errors.append(float(difference.mean()) if both.any() else float("nan"))
    return Geometry(silhouette_iou(views.opacity, torch.from_numpy(truth.opacity)).tolist(), errors)
