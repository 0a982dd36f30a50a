"""Pinhole cameras around an object, and their rays.

Conventions of the project. The world is right-handed with z up; the front of an object faces +x;
the object lies inside the unit ball. Azimuth is counter-clockwise seen from above: a camera at 0
sees the front, at 90 deg the object's left side (+y). Elevation is 0 at the horizon and 90 deg
above. Poses are camera to world in the OpenGL convention: columns right, up, backward, position;
the camera looks along -z. Focal lengths are multiples of the image width. Images are float32
[b, 3, h, w] in [0, 1], row 0 at the top.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dreamsa.config import CameraConfig
from dreamsa.randomness import uniform

PerView = Float[Tensor, "b"]
Broadcast = Float[Tensor, "#b"]


@dataclass(frozen=True)
class Cameras:
    pose: Float[Tensor, "b 3 4"]
    """Camera to world."""
    focal: PerView
    """Multiples of the image width."""
    azimuth_deg: PerView
    """In [0, 360)."""
    elevation_deg: PerView
    """In [-90, 90]."""

    def __len__(self) -> int:
        return len(self.focal)

    def __getitem__(self, index: slice) -> "Cameras":
        return Cameras(*(value[index] for value in vars(self).values()))

    def to(self, device: torch.device | str) -> "Cameras":
        return Cameras(*(value.to(device) for value in vars(self).values()))


def look_at_pose(
    azimuth_deg: PerView,
    elevation_deg: PerView,
    distance: PerView,
    target: Float[Tensor, "b 3"] | None = None,
    up_noise: Float[Tensor, "b 3"] | None = None,
) -> Float[Tensor, "b 3 4"]:
    """Camera-to-world poses on a sphere around the origin that look at `target` or the origin.

    The up vector is the tangent of the sphere, so that a camera directly above is not degenerate.
    """
    azimuth, elevation = azimuth_deg.deg2rad(), elevation_deg.deg2rad()
    x, y, flat, z = azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin()
    position = torch.stack([flat * x, flat * y, z], dim=-1) * distance[:, None]
    north = torch.stack([-z * x, -z * y, flat], dim=-1)
    forward = normalize((0 if target is None else target) - position, dim=-1)
    up = north if up_noise is None else north + up_noise
    right = normalize(torch.linalg.cross(forward, up), dim=-1)
    return torch.stack([right, torch.linalg.cross(right, forward), -forward, position], dim=-1)


def orbit(
    azimuth_deg: PerView | Sequence[float],
    elevation_deg: float | Broadcast = 15.0,
    distance: float | Broadcast = 1.55,
    focal: float | Broadcast = 1.1,
) -> Cameras:
    """Cameras that look at the origin; all but the azimuth broadcast."""
    azimuth = torch.as_tensor(azimuth_deg, dtype=torch.float32)
    elevation, distance, focal = (
        torch.as_tensor(value, dtype=torch.float32).expand_as(azimuth)
        for value in (elevation_deg, distance, focal)
    )
    return Cameras(look_at_pose(azimuth, elevation, distance), focal, azimuth % 360, elevation)


def viewing_cameras(
    config: CameraConfig,
    azimuth_deg: PerView | Sequence[float],
    elevation_deg: float | Broadcast = 15.0,
) -> Cameras:
    """Orbit cameras at the mean distance and focal length of training."""
    return orbit(azimuth_deg, elevation_deg, sum(config.distance) / 2, sum(config.focal) / 2)


def sample_cameras(config: CameraConfig, rng: torch.Generator) -> Cameras:
    """`config.batch` cameras, uniform in each range; target and up jittered (thesis, sec. 4.5)."""
    ranges = (config.azimuth_deg, config.elevation_deg, config.distance, config.focal)
    azimuth, elevation, distance, focal = (uniform(*ends, config.batch, rng) for ends in ranges)
    if config.opposite_pairs:
        azimuth = torch.cat([azimuth[: config.batch // 2], azimuth[: config.batch // 2] + 180])
    target = config.look_at_jitter * torch.randn(config.batch, 3, generator=rng, device=rng.device)
    up_noise = config.up_jitter * torch.randn(config.batch, 3, generator=rng, device=rng.device)
    pose = look_at_pose(azimuth, elevation, distance, target, up_noise)
    return Cameras(pose, focal, azimuth % 360, elevation)


def camera_rays(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "b {height} {width} 3"], Float[Tensor, "b {height} {width} 3"]]:
    """Origins and unit directions of the rays through pixel centres."""
    device = cameras.pose.device
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / width
    y = (torch.arange(height, device=device) + 0.5 - height / 2) / width
    y, x = torch.meshgrid(y, x, indexing="ij")
    focal = cameras.focal[:, None, None]
    local = torch.stack([x / focal, -y / focal, -torch.ones_like(x / focal)], dim=-1)
    directions = torch.einsum("bij,bhwj->bhwi", cameras.pose[:, :, :3], local)
    directions = normalize(directions, dim=-1)
    return cameras.pose[:, None, None, :, 3].expand_as(directions), directions
