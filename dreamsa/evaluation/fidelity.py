"""A scene against the true object of the toybox, in one row of numbers."""

import math
import statistics
from typing import Any, NamedTuple

from dreamsa.config import CameraConfig
from dreamsa.evaluation import metrics
from dreamsa.evaluation.colour import Lab, colour_error, mean_lab, nearest_colour
from dreamsa.evaluation.geometry import compared, normal_error
from dreamsa.evaluation.surface import density_grid, floaters, match_surface
from dreamsa.evaluation.turned import turn_of, two_faced
from dreamsa.evaluation.views import (
    FLAT,
    Views,
    comparable_views,
    fixed_cameras,
    overlap,
    true_views,
    valid_views,
)
from dreamsa.scene import Scene
from dreamsa.toybox.shapes import build


class Fidelity(NamedTuple):
    """Agreement of a scene with a true object, from the eight cameras of `views`; None where
    nothing can be compared. An object in its natural colours may have several valid ones, of which
    the nearest counts."""

    iou: float
    """Intersection over union of the silhouettes, mean over the views."""
    iou_min: float
    depth_error: float | None
    """Mean absolute difference where both are opaque, mean over the views, world units."""
    normal_error_deg: float | None
    """Mean angle between the normals where both are opaque."""
    half_opaque: float | None
    """Fraction of the visible pixels (opacity above 0.1) with opacity below 0.9."""
    half_opaque_true: float | None
    """Of the true render, whose rims are anti-aliased, too; likewise below."""
    fog: float | None
    """Mean of 4 a (1 - a) over the pixels with opacity a above 0.02, in [0, 1]."""
    fog_true: float | None
    psnr: float
    """Over the pixels of either object, dB."""
    colour_error: float | None
    """Median CIEDE2000 inside both silhouettes."""
    colour_variant: int
    """The valid colour that is nearest."""
    colour_margin: float | None
    """By how much the second nearest is farther, CIEDE2000; None if only one is valid."""
    lab_l: float | None
    """Mean colour of the scene's own silhouette in CIELAB; likewise below."""
    lab_a: float | None
    lab_b: float | None
    chamfer: float | None
    """Of the mesh; see `surface.SurfaceMatch`, likewise below."""
    f_score: float
    precision: float
    recall: float
    floaters: float | None
    """Fraction of the matter outside its largest connected part."""
    turned: bool
    """Whether another orientation fits the true images clearly better."""
    turned_deg: float
    turned_margin: float
    two_faced: float | None
    """Fraction of the side and back views that resemble the true front more than the true side."""

    @property
    def lab(self) -> Lab | None:
        """The mean colour."""
        if self.lab_l is None or self.lab_a is None or self.lab_b is None:
            return None
        return self.lab_l, self.lab_a, self.lab_b


def fidelity_of(
    scene: Scene, camera: CameraConfig, name: str, colour: str | None = None
) -> Fidelity:
    """Measure a scene.

    Args:
        camera: Of the run; the views are at its mean distance and focal length.
        name, colour: The object that it should be; None for its natural colours.

    Raises:
        ValueError: Unknown object or colour.
    """
    views = comparable_views(scene, camera)
    grid = density_grid(scene)
    normals = normal_error(scene, build(name), fixed_cameras(camera))
    facts: dict[str, Any] = {
        **image_facts(views, camera, name, colour),
        "normal_error_deg": normals,
        **match_surface(grid, name)._asdict(),
        "floaters": floaters(grid),
    }
    return Fidelity(**{key: _rounded(value) for key, value in facts.items()})


def image_facts(
    views: Views, camera: CameraConfig, name: str, colour: str | None = None
) -> dict[str, Any]:
    """The entries of `Fidelity` that follow from the views over GREY alone."""
    valid = valid_views(camera, name, colour)
    inside = overlap(views, valid[0])
    nearest = nearest_colour([colour_error(views.rgb, true.rgb, inside) for true in valid])
    truth = valid[nearest.variant]
    flat = true_views(camera, name, colour, nearest.variant, FLAT)
    shape = compared(views, truth)
    depths = [error for error in shape.depth_error if not math.isnan(error)]
    lab = mean_lab(views.rgb, views.opacity > 0.5) or (None, None, None)
    turn = turn_of(views, truth, flat)
    either = (views.opacity > 0.05) | (truth.opacity > 0.5)
    return {
        "iou": statistics.median(shape.iou),
        "iou_min": min(shape.iou),
        "depth_error": statistics.mean(depths) if depths else None,
        "half_opaque": metrics.half_opaque_fraction(views.opacity),
        "half_opaque_true": metrics.half_opaque_fraction(truth.opacity),
        "fog": metrics.fog(views.opacity),
        "fog_true": metrics.fog(truth.opacity),
        "psnr": max(metrics.masked_psnr(views.rgb, true.rgb, either) for true in valid),
        "colour_error": nearest.error,
        "colour_variant": nearest.variant,
        "colour_margin": nearest.margin,
        **dict(zip(("lab_l", "lab_a", "lab_b"), lab, strict=True)),
        "turned": turn.turned,
        "turned_deg": turn.offset_deg,
        "turned_margin": turn.margin,
        "two_faced": two_faced(views, truth, flat),
    }


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
