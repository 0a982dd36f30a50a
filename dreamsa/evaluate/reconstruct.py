"""The renderer and the field against real multi-view pictures: fit a NeRF scene, measure PSNR on its test views.

Command: python -m dreamsa.evaluate.reconstruct FILE.npz. The file holds train_images and test_images uint8 [n, h, w, 4]
(RGBA with straight alpha, as in a PNG), train_poses and test_poses [n, 4, 4] (camera to world, OpenGL), focal in pixels; composited on white.
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

from dreamsa.fields.field import FieldConfig, HashField
from dreamsa.fields.hashgrid import HashGridConfig
from dreamsa.randomness import generator_for
from dreamsa.render.cameras import Cameras, camera_rays
from dreamsa.render.occupancy import OccupancyGrid
from dreamsa.render.volume import RenderConfig, render_rays

FIELD = FieldConfig(
    HashGridConfig(levels=8, features=2, log2_size=18, coarsest=16, finest=192),
    hidden=64,
    radius=1.5,
    blob_density=0.0,
    activation="exp",
    view_dependent=True,
)
RENDER = RenderConfig(samples=224, occupancy=64, background="white")
THRESHOLD = 1e-2
"""Optical thickness of one step below which a cell counts as empty: Instant-NGP's."""
MOST_RAYS = 8192


@dataclass(frozen=True)
class Photographs:
    rgba: Float[Tensor, "n h w 4"]  # premultiplied, in [0, 1]
    origins: Float[Tensor, "n h w 3"]
    directions: Float[Tensor, "n h w 3"]  # unit


class Fit(NamedTuple):
    step: int
    seconds: float
    """Process CPU time since the start: what the work costs, whoever shares the machine."""
    psnr: float
    """Of the step's own rays, dB."""


def load_photographs(path: Path, split: str) -> Photographs:
    """One split, "train" or "test", of a scene file.

    Raises:
        ValueError: The file is not such a scene.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, poses, focal = file[f"{split}_images"], file[f"{split}_poses"], float(file["focal"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a NeRF scene file ({error}). It needs {split}_images, {split}_poses and focal.") from error
    straight = torch.from_numpy(images.astype(np.float32) / 255)
    rgba = torch.cat([straight[..., :3] * straight[..., 3:], straight[..., 3:]], dim=-1)
    pose = torch.from_numpy(poses[:, :3].astype(np.float32))
    n, h, w, _ = rgba.shape
    nothing = torch.zeros(n)
    origins, directions = camera_rays(Cameras(pose, torch.full((n,), focal / w), nothing, nothing), h, w)
    return Photographs(rgba, origins.contiguous(), directions)


def over(rgba: Float[Tensor, "*n 4"], background: Float[Tensor, "*n 3"] | Float[Tensor, "3"]) -> Float[Tensor, "*n 3"]:
    """Premultiplied colours over a background."""
    return rgba[..., :3] + (1 - rgba[..., 3:]) * background


def fit_scene(photographs: Photographs, field: HashField, occupancy: OccupancyGrid, steps: int, samples: int, seed: int) -> Iterator[Fit]:
    """Minimise the squared error of random rays, at first over random backgrounds and then over white; Adam, learning rate falling from 1e-2 by a cosine.

    As in Instant-NGP, each step takes as many rays as give about `samples` samples: few at first, while all space may be full.
    """
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-15, fused=True)
    colours, origins, directions = (v.flatten(0, 2) for v in (photographs.rgba, photographs.origins, photographs.directions))
    started, rays = time.process_time(), 256
    for step in range(steps):
        rng = generator_for(seed, step, "reconstruct")
        if step % 16 == 0:
            occupancy.update(lambda points: field.query(points).density, rng, decay=0.95)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        index = torch.randint(len(colours), (rays,), generator=rng)
        first = torch.rand(rays, generator=rng)
        behind = torch.rand(rays, 3, generator=rng) if step < steps / 2 else torch.ones(rays, 3)
        seen = render_rays(field.query, occupancy, origins[index], directions[index], RENDER, behind, first)
        loss = (seen.rgb - over(colours[index], behind)).square().mean()
        rays = min(max(round(rays * samples / max(seen.samples, 1)), 64), 2 * rays, MOST_RAYS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            yield Fit(step + 1, time.process_time() - started, float(-10 * loss.detach().log10()))


@torch.no_grad()
def test_psnr(photographs: Photographs, field: HashField, occupancy: OccupancyGrid) -> tuple[float, Float[Tensor, "n h w 3"]]:
    """Mean PSNR over all views in dB, and the renders."""
    renders, scores = [], []
    for rgba, origins, directions in zip(photographs.rgba, photographs.origins, photographs.directions, strict=True):
        rgb, flat = over(rgba, torch.ones(3)), origins.reshape(-1, 3)
        seen = render_rays(field.query, occupancy, flat, directions.reshape(-1, 3), RENDER, torch.ones(3), torch.full((len(flat),), 0.5))
        renders.append(seen.rgb.view_as(rgb))
        scores.append(float(-10 * (renders[-1] - rgb).square().mean().log10()))
    return float(np.mean(scores)), torch.stack(renders)


test_psnr.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def reconstruct(path: Path, steps: int = 2000, samples: int = 2**15, seed: int = 0, views: int | None = None) -> Iterator[str]:
    """Fit one scene and tell how it goes; the last line is the result, over all test views or every so many that about `views` are seen."""
    field = HashField(FIELD, generator_for(seed, 0, "field"))
    occupancy = OccupancyGrid(RENDER.occupancy, FIELD.radius, threshold=THRESHOLD / RENDER.step(FIELD.radius))
    seconds = 0.0
    for at in fit_scene(load_photographs(path, "train"), field, occupancy, steps, samples, seed):
        seconds = at.seconds
        if at.step % 200 == 0:
            yield f"step {at.step}: {at.psnr:.1f} dB on its own rays, {at.seconds:.0f} s of CPU"
    unseen = load_photographs(path, "test")
    every = len(unseen.rgba) // views if views else 1
    psnr, renders = test_psnr(Photographs(unseen.rgba[::every], unseen.origins[::every], unseen.directions[::every]), field, occupancy)
    yield f"{path.stem}: {psnr:.2f} dB over {len(renders)} test views after {steps} steps of {samples} samples, {seconds:.0f} s of CPU time"


if __name__ == "__main__":
    from cyclopts import run

    def main(path: Path, *, steps: int = 2000, samples: int = 2**15, seed: int = 0) -> None:
        """Fit a NeRF scene file and print the PSNR of its test views."""
        for line in reconstruct(path, steps, samples, seed):
            print(line, flush=True)

    run(main)
