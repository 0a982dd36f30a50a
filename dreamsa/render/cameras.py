"""Pinhole cameras around an object, and their rays.

Conventions of the whole project, stated here once. The world is right-handed with z up; the front of an object looks
along +x; the object lies inside the unit ball. Azimuth is counter-clockwise seen from above: 0 is the front, 90 deg looks
at the object's left side (+y). Elevation is 0 at the horizon and 90 deg above. Pose matrices are camera to world in the
OpenGL convention: columns right, up, backward, position; the camera looks along -z. Focal lengths are multiples of the
image width. Images are [b, 3, h, w] in [0, 1], row 0 at the top.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.randomness import uniform


@dataclass(frozen=True)
class CameraConfig:
    """Where training cameras are drawn from. The defaults are DreamFusion's and the thesis' (preset `paper`)."""

    elevation_deg: tuple[float, float] = (-10.0, 90.0)
    azimuth_deg: tuple[float, float] = (0.0, 360.0)
    distance: tuple[float, float] = (1.0, 1.5)
    """World units from the origin."""
    focal: tuple[float, float] = (0.7, 1.35)
    """Multiples of the image width."""
    look_at_jitter: float = 0.05
    """Standard deviation of the point looked at, world units."""
    up_jitter: float = 0.02
    """Standard deviation added to the up vector."""
    batch: int = 1
    """Views per step, over all processes."""
    resolution: int = 64
    """Side of the square render, pixels."""

    def __post_init__(self) -> None:
        for name, (low, high) in (
            ("elevation_deg", (-90, 90)),
            ("azimuth_deg", (-360, 360)),
            ("distance", (0.1, 100)),
            ("focal", (0.1, 100)),
        ):
            a, b = getattr(self, name)
            if not low <= a <= b <= high:
                raise ValueError(f"camera.{name} must be two ascending numbers in [{low}, {high}], got {a}, {b}.")
        if not 1 <= self.batch <= 64:
            raise ValueError(f"camera.batch must lie in [1, 64], got {self.batch}.")
        if not 8 <= self.resolution <= 1024:
            raise ValueError(f"camera.resolution must lie in [8, 1024] pixels, got {self.resolution}.")


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras."""

    pose: Float[Tensor, "b 3 4"]
    """Camera to world."""
    focal: Float[Tensor, "b"]
    """Multiples of the image width."""
    azimuth_deg: Float[Tensor, "b"]
    """In [0, 360)."""
    elevation_deg: Float[Tensor, "b"]
    """In [-90, 90]."""

    def __len__(self) -> int:
        return len(self.focal)

    def __getitem__(self, index: slice) -> "Cameras":
        return Cameras(self.pose[index], self.focal[index], self.azimuth_deg[index], self.elevation_deg[index])

    def to(self, device: torch.device | str) -> "Cameras":
        return Cameras(*(value.to(device) for value in (self.pose, self.focal, self.azimuth_deg, self.elevation_deg)))


def look_at_pose(
    azimuth_deg: Float[Tensor, "b"],
    elevation_deg: Float[Tensor, "b"],
    distance: Float[Tensor, "b"],
    target: Float[Tensor, "b 3"] | None = None,
    up_noise: Float[Tensor, "b 3"] | None = None,
) -> Float[Tensor, "b 3 4"]:
    """Camera-to-world poses on a sphere around the origin, looking at `target` (default: the origin).

    The up vector is the sphere's own tangent, so that a camera straight above the object is not degenerate.
    """
    azimuth, elevation = azimuth_deg.deg2rad(), elevation_deg.deg2rad()
    outward = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1)
    north = torch.stack([-elevation.sin() * azimuth.cos(), -elevation.sin() * azimuth.sin(), elevation.cos()], dim=-1)
    position = outward * distance[:, None]
    forward = torch.nn.functional.normalize((0 if target is None else target) - position, dim=-1)
    up = north if up_noise is None else north + up_noise
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    return torch.stack([right, torch.linalg.cross(right, forward), -forward, position], dim=-1)


def orbit(
    azimuth_deg: Float[Tensor, "b"] | list[float],
    elevation_deg: float | Float[Tensor, "#b"] = 15.0,
    distance: float | Float[Tensor, "#b"] = 1.55,
    focal: float | Float[Tensor, "#b"] = 1.1,
) -> Cameras:
    """Cameras at the given azimuths that look at the origin; the other arguments broadcast."""
    azimuth = torch.as_tensor(azimuth_deg, dtype=torch.float32)
    elevation, distance, focal = (
        torch.as_tensor(value, dtype=torch.float32).expand_as(azimuth) for value in (elevation_deg, distance, focal)
    )
    return Cameras(look_at_pose(azimuth, elevation, distance), focal, azimuth % 360, elevation)


def viewing_camera(config: CameraConfig) -> dict[str, float]:
    """Distance and focal length from which people look: the middle of the training cameras'."""
    return {"distance": sum(config.distance) / 2, "focal": sum(config.focal) / 2}


def sample_cameras(config: CameraConfig, rng: torch.Generator) -> Cameras:
    """`config.batch` random cameras: uniform in each range, jittered look-at point and up vector (thesis, sec. 4.5)."""
    azimuth = uniform(*config.azimuth_deg, config.batch, rng)
    elevation = uniform(*config.elevation_deg, config.batch, rng)
    distance = uniform(*config.distance, config.batch, rng)
    focal = uniform(*config.focal, config.batch, rng)
    target = config.look_at_jitter * torch.randn(config.batch, 3, generator=rng, device=rng.device)
    up_noise = config.up_jitter * torch.randn(config.batch, 3, generator=rng, device=rng.device)
    pose = look_at_pose(azimuth, elevation, distance, target, up_noise)
    return Cameras(pose, focal, azimuth % 360, elevation)


def camera_rays(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "b {height} {width} 3"], Float[Tensor, "b {height} {width} 3"]]:
    """Ray origins and unit directions through pixel centres."""
    device = cameras.pose.device
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / width
    y = (torch.arange(height, device=device) + 0.5 - height / 2) / width
    y, x = torch.meshgrid(y, x, indexing="ij")
    focal = cameras.focal[:, None, None]
    local = torch.stack([x / focal, -y / focal, -torch.ones_like(x / focal)], dim=-1)  # [b, h, w, 3]
    directions = torch.einsum("bij,bhwj->bhwi", cameras.pose[:, :, :3], local)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return cameras.pose[:, None, None, :, 3].expand_as(directions), directions
