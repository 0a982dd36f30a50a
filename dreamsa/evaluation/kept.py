"""Preservation against the truth: how well an edit to another colour keeps what it should."""

from dreamsa.config import CameraConfig
from dreamsa.evaluation.metrics import masked_psnr
from dreamsa.evaluation.scores import named
from dreamsa.evaluation.surface import density_grid, match_surface
from dreamsa.evaluation.views import Views, comparable_views, true_views, valid_views
from dreamsa.scene import Scene

EQUAL = 0.02
"""Difference of colours up to which the true objects count as equal."""


def truth_kept(
    parent: Scene, scene: Scene, camera: CameraConfig, before: str, prompt: str
) -> dict[str, float]:
    """Agreement with the true object in what the edit should not change.

    Args:
        before, prompt: The parent's prompt and the edit's.

    Returns:
        psnr_kept: PSNR over the pixels in which the true objects before and after are equal, such
        as a mushroom's stem, dB. chamfer_kept: Chamfer distance of the mesh from the true shape,
        world units. Nothing unless both prompts name the same object in different colours.
    """
    old, new = named(before), named(prompt)
    if old.object is None or new.object is None or old.object != new.object:
        return {}
    if new.colour in (None, old.colour):
        return {}
    after = true_views(camera, new.object, new.colour)
    views = comparable_views(scene, camera)
    equal = (_nearest(parent, camera, old.object, old.colour).rgb - after.rgb).abs().amax(1) < EQUAL
    inside = equal & (after.opacity > 0.5)
    found = {"psnr_kept": masked_psnr(views.rgb, after.rgb, inside)} if inside.any() else {}
    chamfer = match_surface(density_grid(scene), new.object).chamfer
    return found if chamfer is None else {**found, "chamfer_kept": chamfer}


def _nearest(parent: Scene, camera: CameraConfig, name: str, colour: str | None) -> Views:
    """The true object of the parent, in the valid colour that is nearest to it."""
    views = comparable_views(parent, camera)
    candidates = valid_views(camera, name, colour)
    inside = (views.opacity > 0.5) & (candidates[0].opacity > 0.5)
    return max(candidates, key=lambda true: masked_psnr(views.rgb, true.rgb, inside))
