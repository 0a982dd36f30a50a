"""What an edit has changed and what it has kept, measured against its parent's scene."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_dilation
from torch import Tensor

from dreamsa.config import CameraConfig
from dreamsa.media import contact_sheet, to_uint8
from dreamsa.randomness import generator_for
from dreamsa.rendering.cameras import viewing_cameras
from dreamsa.rendering.volume import Image
from dreamsa.scene import Scene
from dreamsa.statistics import silhouette_iou

POINTS = 100_000
"""Random points of the cube at which scenes are compared."""
OPAQUE = 0.1
"""Opacity of one step of the renderer from which a point belongs to the object."""
VISIBLE = 0.1
"""Difference, in colour or in the opacity of one step, from which a point counts as changed."""
OUTLINE = (255, 0, 200)


class Preservation(NamedTuple):
    """Agreement of an edit's scene with its parent's."""

    changed: float
    """Fraction of both objects' volume that differs visibly."""
    outside: float
    """Fraction of the scene's cube that the edit had to keep; 0 without a region or `keep`."""
    density_outside: float | None
    """Largest difference of densities where the density was to be kept, 1/world unit; None if it
    was free everywhere. 0 is bit for bit."""
    colour_outside: float | None
    """Largest difference of colours where the colour was to be kept, likewise."""
    colour_difference: float | None
    """Mean difference of colours where both objects are, outside of the region; without one,
    everywhere; None if they share nothing there."""
    silhouette: float
    """Mean intersection over union of the silhouettes from eight sides."""


@torch.no_grad()
def preservation(before: Scene, after: Scene, views: tuple[Image, Image]) -> Preservation:
    """Compare an edit's scene with its parent's.

    Args:
        views: Of both, from the same cameras.
    """
    radius, device = after.occupancy.radius, after.occupancy.density.device
    rng = generator_for(0, 0, "preservation")
    points = ((torch.rand(POINTS, 3, generator=rng) * 2 - 1) * radius).to(device)
    up = torch.tensor([[0.0, 0.0, 1.0]], device=device).expand_as(points)
    old, new = before.query(points, up), after.query(points, up)
    step = after.render_config.step(radius)
    opacity = [-torch.expm1(-sample.density * step) for sample in (old, new)]
    solid = [value > OPAQUE for value in opacity]
    colour = (old.rgb - new.rgb).abs().amax(-1)
    either, both = solid[0] | solid[1], solid[0] & solid[1]
    differs = (opacity[0] - opacity[1]).abs() > VISIBLE
    changed = either & (differs | (both & (colour > VISIBLE)))
    kept = kept_points(after, points)
    away = both if kept is None else both & kept[2]
    iou = silhouette_iou(views[0].opacity, views[1].opacity)
    return Preservation(
        changed=_fraction(changed, either),
        outside=0.0 if kept is None else float((kept[0] | kept[1]).float().mean()),
        density_outside=None if kept is None else _largest(old.density - new.density, kept[0]),
        colour_outside=None if kept is None else _largest(colour, kept[1]),
        colour_difference=float(colour[away].mean()) if away.any() else None,
        silhouette=round(float(iou.mean()), 4),
    )


def kept_points(
    scene: Scene, points: Float[Tensor, "n 3"]
) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n"], Bool[Tensor, "n"]] | None:
    """Points at which an edit had to keep the density, the colour, and everything; without a
    region, the last are all. None if nothing had to be kept."""
    if scene.below is None:
        return None
    free, outside = scene.below.free, scene.below.weight(points) == 0
    density, colour = outside | (free.keep == "shape"), outside | (free.keep == "colour")
    return density, colour, outside if free.has_region else torch.ones_like(outside)


def _fraction(part: Tensor, whole: Tensor) -> float:
    return round(float(part.sum() / whole.sum().clamp(min=1)), 4)


def _largest(difference: Tensor, where: Tensor) -> float | None:
    return float(difference[where].abs().max()) if where.any() else None


def eight_views(scene: Scene, camera: CameraConfig, resolution: int = 96) -> Image:
    """A scene from eight sides, in front of a grey."""
    return scene.view(viewing_cameras(camera, [45.0 * i for i in range(8)]), resolution, 0.7)


def changes_sheet(before: Image, after: Image) -> UInt8[np.ndarray, "h w 3"]:
    """Two rows of images, before and after, the part that differs outlined in both."""
    differs = (before.rgb - after.rgb).abs().amax(1) > VISIBLE
    outlines = np.stack([outline(one) for one in differs.cpu().numpy()])
    rows = [to_uint8(image.rgb.clamp(0, 1)) for image in (before, after)]
    for row in rows:
        row[outlines] = OUTLINE
    return contact_sheet(np.concatenate(rows), len(differs))


def outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels just around a mask."""
    return binary_dilation(mask) & ~mask


def report(found: Preservation) -> dict[str, Any]:
    """As JSON, rounded where it is not exactly 0."""
    return {
        name: value if value is None else float(f"{value:.4g}")
        for name, value in found._asdict().items()
    }
