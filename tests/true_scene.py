"""Scenes whose field is a true object of the toybox."""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor, nn

from dreamsa.config import FieldConfig, HashGridConfig, RenderConfig
from dreamsa.fields.field import Sample
from dreamsa.scene import Scene
from dreamsa.toybox.renderer import Light
from dreamsa.toybox.shapes import Solid, build, distances, scene_distance

SMALL_GRID = HashGridConfig(levels=1, log2_size=4, coarsest=2, finest=2)


@njit(cache=True, parallel=True)
def _shaded(kinds, rows, colours, points, light, ambient):
    """The colour that the renderer gives the nearest surface."""
    out = np.empty((len(points), 3))
    e = 1e-3
    for i in prange(len(points)):
        x, y, z = points[i]
        d, owner = scene_distance(kinds, rows, x, y, z)
        nx = scene_distance(kinds, rows, x + e, y, z)[0] - d
        ny = scene_distance(kinds, rows, x, y + e, z)[0] - d
        nz = scene_distance(kinds, rows, x, y, z + e)[0] - d
        length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
        lit = 0.5 + 0.5 * (nx * light[0] + ny * light[1] + nz * light[2]) / length
        out[i] = colours[owner] * (ambient + (1 - ambient) * lit)
    return out


class SolidField(nn.Module):
    """A solid of density `density`, rotated about z, and any number of balls beside it."""

    def __init__(self, solid: Solid, turned_deg=0.0, density=800.0, ramp=0.01, balls=()):
        super().__init__()
        self.solid, self.turned_deg, self.density, self.ramp = solid, turned_deg, density, ramp
        self.balls = balls
        light = Light()
        azimuth, elevation = np.deg2rad([light.azimuth_deg - turned_deg, light.elevation_deg])
        flat = np.cos(elevation)
        self.light = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
        self.ambient = light.ambient

    def query(self, points: Tensor, directions: Tensor | None = None) -> Sample:
        """Colours are 0 without directions."""
        angle = np.deg2rad(-self.turned_deg)
        c, s = np.cos(angle), np.sin(angle)
        own = points.detach().double().numpy() @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        distance = torch.from_numpy(distances(self.solid, own)).float()
        for centre, radius in self.balls:
            distance = distance.minimum((points - torch.tensor(centre)).norm(dim=1) - radius)
        density = self.density * (-distance / self.ramp).clamp(0, 1)
        if directions is None:
            return Sample(density, torch.zeros_like(points))
        rgb = _shaded(*self.solid[:3], np.ascontiguousarray(own), self.light, self.ambient)
        return Sample(density, torch.from_numpy(rgb).float().clamp(0, 1))


class TrueScene(Scene):
    """An object of the toybox as a scene that can be queried, rendered and meshed.

    `options` are those of `SolidField`: turned about z, denser, with balls beside it.
    """

    def __init__(self, name, colour=None, variant=0, samples=240, **options):
        super().__init__(
            FieldConfig(SMALL_GRID, width=1, radius=0.6), RenderConfig(samples=samples), seed=0
        )
        self.field = SolidField(build(name, colour, variant), **options)
        self.refresh(0, 0, full=True)
