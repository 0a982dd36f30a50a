"""The automatic region of an edit, and images of regions.

The parent's scene is rendered from many views and noised. Where the score model's predictions for
the old and the new prompt differ is accumulated on the surface and cut in two. Vox-E
(arXiv:2303.12048) cuts cross-attention maps; DiffEdit (arXiv:2210.11427) takes the difference of
predictions, for images.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

from dreamsa.config import CameraConfig, FreeConfig, RunConfig
from dreamsa.guidance.noise import add_noise
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import ScoreModel
from dreamsa.keeping import cell_distance, region_distance, weight_at
from dreamsa.media import contact_sheet, to_uint8
from dreamsa.preservation import OUTLINE, outline
from dreamsa.randomness import generator_for
from dreamsa.rendering.cameras import Cameras, camera_rays, viewing_cameras
from dreamsa.rendering.occupancy import cell_centres
from dreamsa.scene import Scene

AZIMUTHS, ELEVATIONS_DEG = 8, (0.0, 35.0, 70.0)
"""Views from which predictions are compared: azimuths at each elevation."""
LEVELS = (0.4, 0.6)
"""Noise levels of the predictions, as fractions of the schedule."""
GREY = 0.7
DISTINCT = 3.0
"""Ratio of the mean differences of two parts below which they count as one: all is changed."""


class Disagreement(NamedTuple):
    """Differences of two predictions on the surface of an object, per cell of the cube."""

    mean: Float[np.ndarray, "n n n"]  # squared difference, mean over pixels; 0 where unseen
    seen: Bool[np.ndarray, "n n n"]
    matter: Bool[np.ndarray, "n n n"]  # dense at the cell's centre


def comparison_cameras(camera: CameraConfig) -> list[Cameras]:
    """Single cameras all around the object; the rings are turned against each other."""
    turn = 360 / AZIMUTHS
    return [
        viewing_cameras(camera, [turn * (i + ring / len(ELEVATIONS_DEG))], elevation)
        for ring, elevation in enumerate(ELEVATIONS_DEG)
        for i in range(AZIMUTHS)
    ]


@torch.no_grad()
def difference_map(
    score: ScoreModel,
    prompts: tuple[ViewPrompt, ViewPrompt],
    cameras: Cameras,
    rgb: Tensor,
    key: int,
) -> Float[Tensor, "h w"]:
    """Squared difference of the predictions for two prompts, per pixel of a render of one view."""
    latents = score.encode(rgb)
    conditions = [prompt(cameras.azimuth_deg, cameras.elevation_deg) for prompt in prompts]
    texts = torch.cat([condition.texts(("positive",)) for condition in conditions])
    found = latents.new_zeros(1, 1, *latents.shape[2:])
    for level in LEVELS:
        timesteps = torch.tensor([int(level * len(score.alpha_bar))], device=latents.device)
        noise = torch.randn(latents.shape, generator=generator_for(0, key, f"region {level}"))
        noisy = add_noise(latents, noise.to(latents), score.alpha_bar[timesteps])
        one, other = score.predict_noise(noisy, timesteps, texts)
        found += (one - other).square().mean(1, keepdim=True)
    return torch.nn.functional.interpolate(found, size=rgb.shape[-2:], mode="bilinear")[0, 0]


@torch.no_grad()
def disagreement(
    scene: Scene, score: ScoreModel, prompts: tuple[ViewPrompt, ViewPrompt], camera: CameraConfig
) -> Disagreement:
    """Accumulate the differences of predictions for the old and the new prompt over the surface."""
    n, size = len(scene.occupancy.occupied), camera.resolution
    total, count = np.zeros(n**3), np.zeros(n**3)
    for key, cameras in enumerate(comparison_cameras(camera)):
        cameras = cameras.to(scene.occupancy.density.device)
        image = scene.view(cameras, size, GREY)
        found = difference_map(score, prompts, cameras, image.rgb, key)
        hit = image.opacity[0] > 0.5
        cells = cell_of(surface(image.depth, cameras)[0][hit], scene.occupancy.radius, n)
        np.add.at(total, cells, found[hit].cpu().numpy())
        np.add.at(count, cells, 1)
    mean = total / count.clip(1)
    centres = cell_centres(n, scene.occupancy.radius, scene.occupancy.density.device)
    matter = scene.query(centres).density > scene.occupancy.threshold
    parts = mean, count > 0, matter.cpu().numpy()
    return Disagreement(*(part.reshape(n, n, n) for part in parts))


def surface(depth: Float[Tensor, "b h w"], cameras: Cameras) -> Float[Tensor, "b h w 3"]:
    """The points that a depth image shows."""
    origins, directions = camera_rays(cameras, *depth.shape[1:])
    return origins + depth[..., None] * directions


def cell_of(points: Float[Tensor, "m 3"], radius: float, n: int) -> Int[np.ndarray, "m"]:
    """Flat index of the cell that contains each point."""
    index = ((points + radius) * (n / (2 * radius))).long().clamp(0, n - 1)
    return ((index[:, 0] * n + index[:, 1]) * n + index[:, 2]).cpu().numpy()


def cut(found: Disagreement) -> Bool[np.ndarray, "n n n"]:
    """The cells whose surface the prompts disagree about: those above Otsu's threshold on the
    logarithms of the smoothed differences; all if the two parts are not DISTINCT.

    Cells inside the object, which no view shows, go with the nearest one that is seen.
    """
    values = ndimage.gaussian_filter(found.mean * found.seen, 0.7)
    smooth = values / ndimage.gaussian_filter(found.seen.astype(float), 0.7).clip(1e-6)
    logs = np.log(smooth[found.seen].clip(1e-12))
    changed = np.zeros(found.seen.shape, bool)
    if np.ptp(logs) == 0:
        changed[found.seen] = True
    else:
        above = logs > threshold_otsu(logs)
        ratio = np.exp(logs[above].mean() - logs[~above].mean())
        changed[found.seen] = above | (ratio < DISTINCT)
    distance, nearest = ndimage.distance_transform_edt(~found.seen, return_indices=True)  # pyright: ignore[reportGeneralTypeIssues]
    return changed[tuple(nearest)] & (found.matter | (distance < 2))


def automatic_region(
    scene: Scene, score: ScoreModel, prompts: tuple[ViewPrompt, ViewPrompt], camera: CameraConfig
) -> Float[Tensor, "n n n"]:
    """Signed distance to the automatic region, world units.

    Raises:
        ValueError: The object cannot be seen.
    """
    found = disagreement(scene, score, prompts, camera)
    if not found.seen.any():
        raise ValueError("The parent shows no object, so that no region can be found on it.")
    radius = scene.occupancy.radius
    return torch.from_numpy(cell_distance(cut(found), radius)).to(scene.occupancy.density)


def find_region(
    scene: Scene, score: ScoreModel | None, config: RunConfig
) -> UInt8[np.ndarray, "h w 3"]:
    """Find the automatic region of an edit's scene, if that is what its region is.

    Args:
        score: Needed by an automatic region alone.

    Returns:
        An image of the region on the parent.
    """
    below, parent, edit = scene.below, scene.beneath(), config.edit
    assert below is not None
    assert parent is not None
    assert edit is not None
    if below.free.auto:
        assert score is not None
        texts = edit.parent_prompt, config.prompt
        old, new = (ViewPrompt(score, text, config=config.views) for text in texts)
        scene.set_region(automatic_region(parent, score, (old, new), config.camera))
    return region_sheet(parent, below.free, below.distance, config.camera)


@torch.no_grad()
def region_sheet(
    scene: Scene, free: FreeConfig, volume: Tensor | None, camera: CameraConfig
) -> UInt8[np.ndarray, "h w 3"]:
    """Eight views of a scene: what may change is tinted, and the region's outline is drawn."""
    cameras = viewing_cameras(camera, [45.0 * i for i in range(8)])
    cameras = cameras.to(scene.occupancy.density.device)
    image, radius = scene.view(cameras, 96, GREY), scene.occupancy.radius

    def weight(points: Tensor) -> Tensor:
        flat = points.reshape(-1, 3)
        distance = region_distance(free, flat, volume, radius)
        distance = torch.where((flat.abs() <= radius).all(-1), distance, torch.inf)
        return weight_at(distance, free.grow).view(points.shape[:-1])

    shown = weight(surface(image.depth, cameras)) * (image.opacity > 0.5)
    tint = image.rgb.new_tensor(OUTLINE)[:, None, None] / 255
    frames = to_uint8((image.rgb + 0.5 * shown[:, None] * (tint - image.rgb)).clamp(0, 1))
    origins, directions = camera_rays(cameras, *image.depth.shape[1:])
    t = (
        torch.linspace(0, 4 * radius, 64, device=origins.device)
        + origins[0, 0, 0].norm()
        - 2 * radius
    )
    reached = torch.stack([weight(origins + at * directions) > 0 for at in t]).any(0)
    for frame, mask in zip(frames, reached.cpu().numpy(), strict=True):
        frame[outline(mask)] = OUTLINE
    return contact_sheet(frames, 4)
