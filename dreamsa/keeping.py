"""What an edit keeps: a frozen scene beneath the field, and the region where the field replaces it.

Where the weight of the field is 0, density and colour are those of the frozen scene, bit for bit;
where it is 1, they are the field's; in the margin between, the two are blended as media.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from dreamsa.config import FieldConfig, FreeConfig
from dreamsa.fields.field import HashField, Queryable, Sample
from dreamsa.randomness import generator_for
from dreamsa.rendering.occupancy import cell_centres, in_cells

Points = Float[Tensor, "points 3"]
Volume = Float32[Tensor, "n n n"]


def box_distance(points: Points, box: Sequence[float]) -> Float[Tensor, "points"]:
    """Signed distance to an axis-aligned box, negative inside."""
    low, high = points.new_tensor(box[:3]), points.new_tensor(box[3:])
    beyond = (points - (low + high) / 2).abs() - (high - low) / 2
    return beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0)


def sphere_distance(points: Points, sphere: Sequence[float]) -> Float[Tensor, "points"]:
    """Signed distance to a sphere, negative inside."""
    return (points - points.new_tensor(sphere[:3])).norm(dim=-1) - sphere[3]


def cell_distance(cells: Bool[np.ndarray, "n n n"], radius: float) -> Float32[np.ndarray, "n n n"]:
    """Signed distance of the centres of cells over the cube to the boundary of those that are
    True, world units, negative inside; far away if none is."""
    if not cells.any():
        return np.full(cells.shape, 4 * radius, np.float32)
    size = 2 * radius / len(cells)
    outer, inner = distance_transform_edt(~cells), distance_transform_edt(cells)
    distance = np.where(cells, 0.5 - inner, outer - 0.5)  # pyright: ignore[reportOperatorIssue]
    return (distance * size).astype(np.float32)


def interpolated(volume: Volume, radius: float, points: Points) -> Float[Tensor, "points"]:
    """Trilinear interpolation between the centres of cells over the cube."""
    grid = (points / radius).flip(-1)[None, :, None, None]
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return nn.functional.grid_sample(volume[None, None], grid, **options).view(-1)


def region_distance(
    free: FreeConfig, points: Points, volume: Volume | None = None, radius: float = 1.0
) -> Float[Tensor, "points"]:
    """Signed distance to what is free, negative inside; without a region everywhere.

    Args:
        volume: Signed distances of the automatic region, in the cube of half side `radius`.
    """
    if not free.has_region:
        return points.new_full((len(points),), -torch.inf)
    parts = [box_distance(points, box) for box in free.boxes]
    parts += [sphere_distance(points, sphere) for sphere in free.spheres]
    if free.auto:
        assert volume is not None
        parts.append(interpolated(volume, radius, points))
    distance = torch.stack(parts).amin(0)
    return -distance if free.outside else distance


def weight_at(distance: Float[Tensor, "points"], grow: float) -> Float[Tensor, "points"]:
    """1 inside, 0 from `grow` on, smoothstep (3 x^2 - 2 x^3) between."""
    if grow == 0:
        return (distance <= 0).to(distance)
    x = (1 - distance / grow).clamp(0, 1)
    return x * x * (3 - 2 * x)


def blend(
    below: Sample, above: Sample, weight: Float[Tensor, "points"], free: FreeConfig
) -> Sample:
    """Mix two media: densities by weight, colours by the densities that they contribute.

    The results at weights 0 and 1 are exact.
    """
    density = below.density
    share = weight
    if free.keep != "shape":
        density = torch.lerp(below.density, above.density, weight)
        part, whole = weight * above.density, weight * above.density + (1 - weight) * below.density
        share = torch.where(whole > 0, part / whole.clamp(min=1e-12), weight)
    if free.keep == "colour":
        return Sample(density, below.rgb)
    return Sample(density, torch.lerp(below.rgb, above.rgb, share[:, None]))


class Below(nn.Module):
    """The frozen scene that a field stands on, and what of it the field replaces."""

    occupied: Tensor
    """[n, n, n]: occupied cells of the frozen scene."""
    distance: Tensor | None
    """[n, n, n]: signed distance to the automatic region, if there is one."""

    def __init__(
        self,
        field: FieldConfig,
        layers: Sequence[FreeConfig],
        cells: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            layers: What each field may change of what lies beneath it, the topmost last.
            cells: Per side of the occupancy grid.
        """
        super().__init__()
        *beneath, self.free = layers
        self.radius = field.radius
        self.field = HashField(field, generator_for(0, 0, "below", device)).requires_grad_(False)
        shape = (cells,) * 3
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool, device=device))
        auto = torch.zeros(shape, device=device) if self.free.auto else None
        self.register_buffer("distance", auto)
        self.below = Below(field, beneath, cells, device) if beneath else None

    @property
    def layers(self) -> tuple[FreeConfig, ...]:
        """What each field may change, the topmost last."""
        return (*(() if self.below is None else self.below.layers), self.free)

    @property
    def keeps_shape(self) -> bool:
        return self.free.keep == "shape"

    @torch.no_grad()
    def weight(self, points: Points) -> Float[Tensor, "points"]:
        """Of the field above, in [0, 1]."""
        distance = region_distance(self.free, points, self.distance, self.radius)
        return weight_at(distance, self.free.grow)

    @torch.no_grad()
    def free_cells(self) -> Bool[Tensor, "n n n"]:
        """Cells in which the density may change."""
        n = self.occupied.shape[0]
        if self.keeps_shape:
            return torch.zeros_like(self.occupied)
        centres = cell_centres(n, self.radius, self.occupied.device)
        distance = region_distance(self.free, centres, self.distance, self.radius)
        reach = self.free.grow + 2 * self.radius / n * 3**0.5
        return (distance < reach).view(n, n, n)

    @torch.no_grad()
    def query(self, points: Points, directions: Points | None = None) -> Sample:
        """The frozen scene; 0 in cells that it does not occupy."""
        return self._masked(radiance(self.field, self.below, points, directions), points)

    def _masked(self, sample: Sample, points: Points) -> Sample:
        occupied = in_cells(self.occupied, self.radius, points)
        return Sample(
            torch.where(occupied, sample.density, 0), torch.where(occupied[:, None], sample.rgb, 0)
        )

    def density(self, above: Queryable, points: Points) -> Float[Tensor, "points"]:
        """Density of the composed scene alone."""
        if self.keeps_shape:
            return self.query(points).density
        return self.compose(above, points, None, "density").density

    def compose(
        self,
        above: Queryable,
        points: Points,
        directions: Points | None,
        only: Literal["density", "colour"] | None = None,
    ) -> Sample:
        """The field where it is free, the frozen scene elsewhere. Differentiable in the field.

        Each of the two is evaluated only where it contributes.

        Args:
            only: What is asked for; where the other is kept, it is not evaluated but 0.
        """
        weight = self.weight(points)
        with torch.no_grad():
            kept = weight < 1
            if (self.free.keep, only) in (("colour", None), ("shape", None), ("colour", "colour")):
                kept = torch.ones_like(kept)
            density, rgb = points.new_zeros(len(points)), points.new_zeros(len(points), 3)
            at, towards = points[kept], None if directions is None else directions[kept]
            plain = radiance(self.field, self.below, at, towards)
            masked = self._masked(plain, at)
            # colours are defined in empty cells too, into which matter may grow
            rgb[kept] = torch.where(weight[kept, None] > 0, plain.rgb, masked.rgb)
            density[kept] = masked.density
        free = weight > 0
        towards = None if directions is None else directions[free]
        above_there = above.query(points[free], towards)
        mixed = blend(Sample(density[free], rgb[free]), above_there, weight[free], self.free)
        if not self.keeps_shape:
            density = density.index_put((free,), mixed.density)
        if self.free.keep != "colour":
            rgb = rgb.index_put((free,), mixed.rgb)
        return Sample(density, rgb)


def radiance(
    field: Queryable, below: Below | None, points: Points, directions: Points | None = None
) -> Sample:
    """A field, standing on what is below it."""
    if below is None:
        return field.query(points, directions)
    return below.compose(field, points, directions)
