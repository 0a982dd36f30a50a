"""Labelled images of the toybox for training, rendered once in shards and kept as RGBA bytes."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int16, UInt8
from torch import Tensor

from dreamsa.choices import VIEWS
from dreamsa.config import CameraConfig
from dreamsa.files import write_atomic
from dreamsa.guidance.prompts import ANGLE_STEP_DEG, nearest_angles, view_of
from dreamsa.media import to_uint8
from dreamsa.randomness import seed_for
from dreamsa.rendering.cameras import sample_cameras
from dreamsa.toybox.captions import HELD_OUT
from dreamsa.toybox.renderer import Light, render_solid
from dreamsa.toybox.shapes import COLOURS, TOYS, build

NAMES = tuple(TOYS)
COLOUR_NAMES = (None, *COLOURS)
"""Index 0 is an object in its natural colours."""
AMBIGUOUS = -1
"""The label of a camera that no single view or azimuth describes."""
BORDER_DEG = 10.0
"""Half the width of the borders between views."""
STEEP_DEG = 70
"""Elevation from which azimuths are ambiguous."""

TOYBOX_CAMERA = CameraConfig(
    elevation_deg=(-10.0, 90.0),
    distance=(1.4, 1.7),
    focal=(0.95, 1.2),
    look_at_jitter=0.02,
    up_jitter=0.02,
)
"""Cameras that see the complete object: those of the training images and of the preset `toybox`."""

JUDGE_CAMERA = replace(
    TOYBOX_CAMERA, distance=(1.3, 2.2), focal=(0.9, 1.35), look_at_jitter=0.05, up_jitter=0.06
)

Labels = Int16[np.ndarray, "n 4"]
"""Indices into NAMES and COLOUR_NAMES; azimuth in [0, 360] and elevation, rounded to degrees."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, premultiplied so that they can be composited over any background."""

    rgba: UInt8[np.ndarray, "n h w 4"]  # colour times opacity
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def over(
        self,
        index: Int[np.ndarray, "b"],
        background: Float[np.ndarray, "#b #h #w 3"],
        device: torch.device | str = "cpu",
    ) -> Float32[Tensor, "b 3 h w"]:
        """Composite the images `index` over `background`, all in [0, 1], on a device."""
        rgba = torch.from_numpy(self.rgba[index]).to(device).movedim(-1, 1).float() / 255
        behind = torch.from_numpy(background).to(device).movedim(-1, 1).float()
        return (rgba[:, :3] + (1 - rgba[:, 3:]) * behind).contiguous()


def view_label(azimuth_deg: float, elevation_deg: float) -> int:
    """Index of the view in VIEWS; AMBIGUOUS within BORDER_DEG of another view, in either angle."""
    view = view_of(azimuth_deg, elevation_deg)
    steps = ((BORDER_DEG, 0), (-BORDER_DEG, 0), (0, BORDER_DEG), (0, -BORDER_DEG))
    clear = all(view_of(azimuth_deg + a, elevation_deg + e) == view for a, e in steps)
    return VIEWS.index(view) if clear else AMBIGUOUS


def azimuth_label(azimuth_deg: float, elevation_deg: float) -> int:
    """Azimuth in multiples of ANGLE_STEP_DEG; AMBIGUOUS from STEEP_DEG of elevation."""
    azimuth, _ = nearest_angles(azimuth_deg, elevation_deg)
    return azimuth // ANGLE_STEP_DEG if elevation_deg < STEEP_DEG else AMBIGUOUS


def render_images(count: int, seed: int, judge: bool = False, resolution: int = 64) -> ImageSet:
    """Render random objects, colours, cameras and lights; a quarter in natural colours.

    Args:
        judge: Render all colour-object pairs, from more varied cameras under any light. Otherwise
            leave HELD_OUT pairs out and vary the light only slightly.
    """
    stream = "judge" if judge else "pictures"
    rng = np.random.default_rng(seed_for(seed, 0, stream))
    torch_rng = torch.Generator().manual_seed(seed_for(seed, 1, stream))
    rgba = np.empty((count, resolution, resolution, 4), np.uint8)
    labels = np.empty((count, 4), np.int16)
    for i in range(count):
        while True:
            name = int(rng.integers(len(NAMES)))
            colour = 0 if rng.random() < 0.25 else int(rng.integers(1, len(COLOUR_NAMES)))
            if judge or (COLOUR_NAMES[colour], NAMES[name]) not in HELD_OUT:
                break
        camera = sample_cameras(JUDGE_CAMERA if judge else TOYBOX_CAMERA, torch_rng)
        light = _random_light(rng, judge)
        solid = build(NAMES[name], COLOUR_NAMES[colour], variant=int(rng.integers(6)))
        render = render_solid(solid, camera, resolution, background=0.0, light=light)
        rgba[i, :, :, :3] = to_uint8(render.rgb[0])
        rgba[i, :, :, 3] = (render.opacity[0] * 255 + 0.5).astype(np.uint8)
        angles = float(camera.azimuth_deg), float(camera.elevation_deg)
        labels[i] = name, colour, *map(round, angles)
    return ImageSet(rgba, labels)


def _random_light(rng: np.random.Generator, judge: bool) -> Light:
    """Any light for the judge; otherwise one close to the default."""
    if judge:
        angles = float(rng.uniform(0, 360)), float(rng.uniform(10, 85))
        return Light(*angles, float(rng.uniform(0.5, 0.95)))
    return Light(30 + float(rng.normal(0, 8)), 55 + float(rng.normal(0, 5)))


class _Shard(NamedTuple):
    """The images from `start` on, of those of a seed."""

    path: Path
    start: int
    size: int
    seed: int
    judge: bool


def _render_shard(shard: _Shard) -> None:
    images = render_images(shard.size, seed_for(shard.seed, shard.start, "shard"), shard.judge)
    write_atomic(shard.path, partial(np.savez, rgba=images.rgba, labels=images.labels))


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    numba.set_num_threads(1)


def _render_shards(shards: Sequence[_Shard], workers: int) -> None:
    if workers == 1 or len(shards) <= 1:
        for shard in shards:
            _render_shard(shard)
        return
    context, count = multiprocessing.get_context("spawn"), min(workers, len(shards))
    with ProcessPoolExecutor(count, context, _use_one_thread) as pool:
        list(pool.map(_render_shard, shards))  # raises what a worker raised


def cached_images(
    folder: Path, count: int, seed: int, judge: bool = False, shard: int = 2000, workers: int = 1
) -> ImageSet:
    """`render_images` in shards kept in `folder`, so that it can be resumed.

    Args:
        shard: Images per file.
        workers: Processes that render; the images do not depend on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind, shards = "judge" if judge else "renders", []
    for start in range(0, count, shard):
        size = min(shard, count - start)
        path = folder / f"{kind}-{seed}-{start}-{size}.npz"
        shards.append(_Shard(path, start, size, seed, judge))
    _render_shards([one for one in shards if not one.path.exists()], workers)
    rgba, labels = [], []
    for one in shards:
        with np.load(one.path, allow_pickle=False) as file:
            rgba.append(file["rgba"])
            labels.append(file["labels"])
    return ImageSet(np.concatenate(rgba), np.concatenate(labels))


def grey_backgrounds(count: int, rng: np.random.Generator) -> Float32[np.ndarray, "{count} 1 1 3"]:
    """Uniform greys with a slight tint: the backgrounds of the diffusion model's training."""
    grey = rng.uniform(0.25, 0.95, (count, 1, 1, 1)) + rng.normal(0, 0.08, (count, 1, 1, 3))
    return np.clip(grey, 0, 1).astype(np.float32)


def wild_backgrounds(
    count: int, rng: np.random.Generator, resolution: int = 64
) -> Float32[np.ndarray, "{count} {resolution} {resolution} 3"]:
    """Gradients between two random colours with some noise: the judge's backgrounds."""
    a, b = rng.random((2, count, 1, 1, 3))
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    y, x = np.mgrid[-0.5 : 0.5 : resolution * 1j, -0.5 : 0.5 : resolution * 1j]
    ramp = np.clip(0.5 + np.cos(angle) * x + np.sin(angle) * y, 0, 1)[..., None]
    noise = rng.normal(0, 1, (count, resolution, resolution, 1)) * rng.uniform(
        0, 0.06, (count, 1, 1, 1)
    )
    uniform = rng.random((count, 1, 1, 1)) < 0.5
    return np.clip(np.where(uniform, a, a + (b - a) * ramp) + noise, 0, 1).astype(np.float32)
