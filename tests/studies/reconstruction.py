"""Reconstruction from real multi-view images: fit a NeRF scene, measure PSNR on its test views.

Command: PYTHONPATH=tests python -m studies.reconstruction FILE.npz. The file holds train_images and
test_images uint8 [n, h, w, 4] (RGBA with straight alpha, as in a PNG), train_poses and test_poses
[n, 4, 4] (camera to world, OpenGL) and focal in pixels; images are composited on white.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.config import FieldConfig, HashGridConfig, RenderConfig
from dreamsa.fields.field import HashField
from dreamsa.randomness import generator_for
from dreamsa.rendering.cameras import Cameras, camera_rays
from dreamsa.rendering.occupancy import OccupancyGrid
from dreamsa.rendering.volume import render_rays
from dreamsa.statistics import psnr

FIELD = FieldConfig(
    HashGridConfig(levels=8, features=2, log2_size=18, coarsest=16, finest=192),
    width=64,
    radius=1.5,
    blob_density=0.0,
    activation="exp",
    view_dependent=True,
)
RENDER = RenderConfig(samples=224, occupancy=64, background="white")
THRESHOLD = 1e-2
"""Optical thickness of one step below which a cell counts as empty: Instant-NGP's."""
MAX_RAYS = 8192


@dataclass(frozen=True)
class RayImages:
    """Images with the ray of each pixel."""

    rgba: Float[Tensor, "n h w 4"]  # premultiplied, in [0, 1]
    origins: Float[Tensor, "n h w 3"]
    directions: Float[Tensor, "n h w 3"]  # unit

    def __getitem__(self, index: slice) -> "RayImages":
        return RayImages(self.rgba[index], self.origins[index], self.directions[index])


class FitStep(NamedTuple):
    step: int
    seconds: float
    """CPU time of the process, whatever else the machine does."""
    psnr: float
    """Of the step's own rays, dB."""


def load_views(path: Path, split: str) -> RayImages:
    """One split, "train" or "test", of a scene file.

    Raises:
        ValueError: The file is not such a scene.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, poses = file[f"{split}_images"], file[f"{split}_poses"]
            focal = float(file["focal"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a NeRF scene file ({error}). "
            f"It needs {split}_images, {split}_poses and focal."
        ) from error
    straight = torch.from_numpy(images.astype(np.float32) / 255)
    rgba = torch.cat([straight[..., :3] * straight[..., 3:], straight[..., 3:]], dim=-1)
    n, h, w, _ = rgba.shape
    pose, zeros = torch.from_numpy(poses[:, :3].astype(np.float32)), torch.zeros(n)
    cameras = Cameras(pose, torch.full((n,), focal / w), zeros, zeros)
    origins, directions = camera_rays(cameras, h, w)
    return RayImages(rgba, origins.contiguous(), directions)


def over(
    rgba: Float[Tensor, "*n 4"], background: Float[Tensor, "*n 3"] | Float[Tensor, "3"]
) -> Float[Tensor, "*n 3"]:
    """Composite premultiplied colours over a background."""
    return rgba[..., :3] + (1 - rgba[..., 3:]) * background


def fit_scene(
    images: RayImages,
    field: HashField,
    occupancy: OccupancyGrid,
    steps: int,
    samples: int,
    seed: int,
) -> Iterator[FitStep]:
    """Minimize the squared error of random rays, over random backgrounds and later over white.

    Adam, learning rate 1e-2 with a cosine. As in Instant-NGP, the number of rays of a step is
    adjusted to give about `samples` samples. Yields every 100 steps.
    """
    optimizer = torch.optim.Adam(
        field.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-15, fused=True
    )
    rgba, origins, directions = (
        values.flatten(0, 2) for values in (images.rgba, images.origins, images.directions)
    )
    started, rays = time.process_time(), 256
    for step in range(steps):
        rng = generator_for(seed, step, "reconstruct")
        if step % 16 == 0:
            occupancy.update(lambda points: field.query(points).density, rng, decay=0.95)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        index = torch.randint(len(rgba), (rays,), generator=rng)
        first = torch.rand(rays, generator=rng)
        early = step < steps / 2
        background = torch.rand(rays, 3, generator=rng) if early else torch.ones(rays, 3)
        rendered = render_rays(
            field.query, occupancy, origins[index], directions[index], RENDER, background, first
        )
        truth = over(rgba[index], background)
        loss = (rendered.rgb - truth).square().mean()
        rays = round(rays * samples / max(rendered.samples, 1))
        rays = min(max(rays, 64), 2 * len(index), MAX_RAYS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            quality = float(psnr(rendered.rgb.detach()[None], truth[None]))
            yield FitStep(step + 1, time.process_time() - started, quality)


@torch.no_grad()
def render_views(
    images: RayImages, field: HashField, occupancy: OccupancyGrid
) -> Float[Tensor, "n h w 3"]:
    """Render the views of images over white."""
    renders = []
    for origins, directions in zip(images.origins, images.directions, strict=True):
        rays = origins.reshape(-1, 3), directions.reshape(-1, 3)
        rendered = render_rays(field.query, occupancy, *rays, RENDER, torch.ones(3))
        renders.append(rendered.rgb.view_as(origins))
    return torch.stack(renders)


def reconstruct(
    path: Path, steps: int = 2000, samples: int = 2**15, seed: int = 0, views: int | None = None
) -> Iterator[str]:
    """Fit one scene; yields lines of progress, the last one with the mean PSNR of its test views.

    Args:
        views: About how many test views to use; by default all.
    """
    field = HashField(FIELD, generator_for(seed, 0, "field"))
    threshold = THRESHOLD / RENDER.step(FIELD.radius)
    occupancy = OccupancyGrid(RENDER.occupancy, FIELD.radius, threshold=threshold)
    seconds = 0.0
    for at in fit_scene(load_views(path, "train"), field, occupancy, steps, samples, seed):
        seconds = at.seconds
        if at.step % 200 == 0:
            yield f"step {at.step}: {at.psnr:.1f} dB on its own rays, {seconds:.0f} s of CPU time"
    test = load_views(path, "test")
    test = test[:: len(test.rgba) // views if views else 1]
    mean = float(psnr(render_views(test, field, occupancy), over(test.rgba, torch.ones(3))).mean())
    yield (
        f"{path.stem}: {mean:.2f} dB over {len(test.rgba)} test views after {steps} steps "
        f"of {samples} samples, {seconds:.0f} s of CPU time"
    )


if __name__ == "__main__":
    from cyclopts import run

    def main(path: Path, *, steps: int = 2000, samples: int = 2**15, seed: int = 0) -> None:
        """Fit a NeRF scene file and print the PSNR of its test views."""
        for line in reconstruct(path, steps, samples, seed):
            print(line, flush=True)

    run(main)
