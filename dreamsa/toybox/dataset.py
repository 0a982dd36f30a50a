"""Pictures of the toybox with their labels, for training: rendered once in parallel-safe shards, kept as RGBA bytes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int16, UInt8
from torch import Tensor

from dreamsa.guidance.prompts import VIEWS, view_of
from dreamsa.randomness import seed_for
from dreamsa.render.cameras import CameraConfig, sample_cameras
from dreamsa.toybox.captions import HELD_OUT
from dreamsa.toybox.renderer import Light, render_solid, to_uint8
from dreamsa.toybox.shapes import COLOURS, TOYS, build

NAMES = tuple(TOYS)
COLOUR_NAMES = (None, *COLOURS)
UNTOLD = -1
"""The view's label where a camera stands so near the border of two views that neither name fits."""
BORDER_DEG = 10.0
"""Index 0 is an object in its natural colours."""

TOYBOX_CAMERA = CameraConfig(elevation_deg=(-10.0, 90.0), distance=(1.4, 1.7), focal=(0.95, 1.2), look_at_jitter=0.02, up_jitter=0.02)
"""Cameras that see the whole object: those of the training pictures and of the preset `toybox`."""

JUDGE_CAMERA = CameraConfig(elevation_deg=(-10.0, 90.0), distance=(1.3, 2.2), focal=(0.9, 1.35), look_at_jitter=0.05, up_jitter=0.06)


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures. Premultiplied, so that any background can be put behind them."""

    rgba: UInt8[np.ndarray, "n h w 4"]  # colour times opacity
    labels: Int16[np.ndarray, "n 3"]  # object, colour (0 = natural), view (or UNTOLD)

    def __len__(self) -> int:
        return len(self.labels)

    def over(self, index: Int[np.ndarray, "b"], background: Float[np.ndarray, "#b #h #w 3"]) -> Float32[Tensor, "b 3 h w"]:
        """Pictures `index` over `background`, all in [0, 1]."""
        rgba = self.rgba[index].astype(np.float32) / 255
        rgb = rgba[..., :3] + (1 - rgba[..., 3:]) * background
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(rgb, -1, 1), dtype=np.float32))


def view_label(azimuth_deg: float, elevation_deg: float) -> int:
    """Index of the view in VIEWS; UNTOLD where a turn of BORDER_DEG or less, about or up, would change its name."""
    here = view_of(azimuth_deg, elevation_deg)
    around = [(azimuth_deg + BORDER_DEG, elevation_deg), (azimuth_deg - BORDER_DEG, elevation_deg)]
    around += [(azimuth_deg, elevation_deg + BORDER_DEG), (azimuth_deg, elevation_deg - BORDER_DEG)]
    return VIEWS.index(here) if all(view_of(*angles) == here for angles in around) else UNTOLD


def render_pictures(count: int, seed: int, judge: bool = False, resolution: int = 64) -> Pictures:
    """Draw `count` random objects, colours, cameras and lights.

    With `judge`, all colour-object pairs appear, from other cameras and under other lights; without, HELD_OUT pairs do not,
    and the light moves only a little around the one that scenes are baked under. A quarter of the pictures are in natural colours.
    """
    stream = "judge" if judge else "pictures"
    rng = np.random.default_rng(seed_for(seed, 0, stream))
    torch_rng = torch.Generator().manual_seed(seed_for(seed, 1, stream))
    rgba = np.empty((count, resolution, resolution, 4), np.uint8)
    labels = np.empty((count, 3), np.int16)
    for i in range(count):
        while True:
            name = int(rng.integers(len(NAMES)))
            colour = 0 if rng.random() < 0.25 else int(rng.integers(1, len(COLOUR_NAMES)))
            if judge or (COLOUR_NAMES[colour], NAMES[name]) not in HELD_OUT:
                break
        camera = sample_cameras(JUDGE_CAMERA if judge else TOYBOX_CAMERA, torch_rng)
        if judge:
            light = Light(float(rng.uniform(0, 360)), float(rng.uniform(10, 85)), float(rng.uniform(0.5, 0.95)))
        else:
            light = Light(30 + float(rng.normal(0, 8)), 55 + float(rng.normal(0, 5)))
        solid = build(NAMES[name], COLOUR_NAMES[colour], variant=int(rng.integers(6)))
        view = render_solid(solid, camera, resolution, background=0.0, light=light)
        rgba[i, :, :, :3] = to_uint8(view.rgb[0])
        rgba[i, :, :, 3] = (view.opacity[0] * 255 + 0.5).astype(np.uint8)
        labels[i] = name, colour, view_label(float(camera.azimuth_deg), float(camera.elevation_deg))
    return Pictures(rgba, labels)


def cached_pictures(folder: Path, count: int, seed: int, judge: bool = False, shard: int = 2000) -> Pictures:
    """`render_pictures` in shards that are kept in `folder`: an interrupted rendering goes on where it stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in range(0, count, shard):
        size = min(shard, count - start)
        path = folder / f"{'judge' if judge else 'pictures'}-{seed}-{start}-{size}.npz"
        if not path.exists():
            made = render_pictures(size, seed_for(seed, start, "shard"), judge)
            part = path.with_suffix(".part.npz")
            np.savez(part, rgba=made.rgba, labels=made.labels)
            part.replace(path)
        with np.load(path, allow_pickle=False) as file:
            shards.append(Pictures(file["rgba"], file["labels"]))
    return Pictures(np.concatenate([s.rgba for s in shards]), np.concatenate([s.labels for s in shards]))


def grey_backgrounds(count: int, rng: np.random.Generator) -> Float32[np.ndarray, "{count} 1 1 3"]:
    """Plain backgrounds, from dark to light grey with a slight tint: the ones the diffusion model knows."""
    grey = rng.uniform(0.25, 0.95, (count, 1, 1, 1)) + rng.normal(0, 0.08, (count, 1, 1, 3))
    return np.clip(grey, 0, 1).astype(np.float32)


def wild_backgrounds(
    count: int, rng: np.random.Generator, resolution: int = 64
) -> Float32[np.ndarray, "{count} {resolution} {resolution} 3"]:
    """Gradients between any two colours with some noise: the judge's."""
    a, b = rng.random((2, count, 1, 1, 3))
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    y, x = np.mgrid[-0.5 : 0.5 : resolution * 1j, -0.5 : 0.5 : resolution * 1j]
    ramp = np.clip(0.5 + np.cos(angle) * x + np.sin(angle) * y, 0, 1)[..., None]
    noise = rng.normal(0, 1, (count, resolution, resolution, 1)) * rng.uniform(0, 0.06, (count, 1, 1, 1))
    plain = rng.random((count, 1, 1, 1)) < 0.5
    return np.clip(np.where(plain, a, a + (b - a) * ramp) + noise, 0, 1).astype(np.float32)
