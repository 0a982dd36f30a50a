"""Volume rendering as pure functions of `query(points)` (Max 1995; NeRF, eq. 3).

Samples are packed: those of ray r are rows starts[r] to starts[r + 1]. A sample represents an
interval of length `step` around its `t_mid`; its optical depth is density * step. `kernels_torch`
defines the kernels.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from dreamsa.config import RenderConfig
from dreamsa.rendering.cameras import Cameras, camera_rays
from dreamsa.rendering.kernels import kernels_for
from dreamsa.rendering.kernels_torch import sample_weights
from dreamsa.rendering.occupancy import DensityFn, OccupancyGrid
from dreamsa.rendering.shading import density_normals, shade

NEGLIGIBLE = 1e-4
"""Weight of a sample in its ray's colour up to which a frozen density's samples have no colour."""

Vectors = Float[Tensor, "rays 3"]
PerRay = Float[Tensor, "rays"]
Maps = Float[Tensor, "b h w"]
QueryFn = Callable[
    [Float[Tensor, "n 3"], Float[Tensor, "n 3"] | None],
    tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]],
]
"""(points, unit ray directions or None for density only) -> (density in 1/world unit, rgb)."""


class Samples(NamedTuple):
    """Packed samples."""

    starts: Int64[Tensor, "edges"]  # one more than rays
    ray: Int64[Tensor, "samples"]
    t_mid: Float[Tensor, "samples"]  # world units from the ray's origin
    points: Float[Tensor, "samples 3"]


class Image(NamedTuple):
    """Rendered images, differentiable in the field's parameters."""

    rgb: Float[Tensor, "b 3 h w"]  # in [0, 1], over the background
    opacity: Maps  # in [0, 1]
    depth: Maps  # expected distance along the ray given a hit; 0 without one
    orientation: Float[Tensor, ""]  # mean over rays of the orientation loss
    depth_variance: Float[Tensor, ""]  # mean over rays of opacity above 0.5, squared world units
    samples: int  # number of composited samples


class Rays(NamedTuple):
    """`Image` by ray."""

    rgb: Vectors
    opacity: PerRay
    depth: PerRay
    orientation: PerRay  # 0 unless requested
    depth_variance: PerRay  # likewise; 0 where opacity is at most 0.5
    samples: int

    @classmethod
    def concatenate(cls, parts: Sequence["Rays"]) -> "Rays":
        *columns, samples = zip(*parts, strict=True)
        return cls(*map(torch.cat, columns), samples=sum(samples))

    def image(self, resolution: int) -> Image:
        shape = (-1, resolution, resolution)
        rgb = self.rgb.view(*shape, 3).movedim(-1, 1)
        opacity, depth = self.opacity.view(shape), self.depth.view(shape)
        hits = (self.opacity > 0.5).sum().clamp(min=1)
        variance = self.depth_variance.sum() / hits
        return Image(rgb, opacity, depth, self.orientation.mean(), variance, self.samples)


def cube_bounds(origins: Vectors, directions: Vectors, radius: float) -> tuple[PerRay, PerRay]:
    """Distances (near, far) at which rays enter and leave the cube [-radius, radius]^3.

    near is at least 0; far <= near for rays that miss the cube.
    """
    tiny = torch.full_like(directions, 1e-9)
    inverse = 1 / torch.where(directions.abs() < 1e-9, tiny, directions)
    a, b = (-radius - origins) * inverse, (radius - origins) * inverse
    return torch.minimum(a, b).amax(-1).clamp(min=0), torch.maximum(a, b).amin(-1)


def march(
    occupancy: OccupancyGrid,
    origins: Vectors,
    directions: Vectors,
    step: float,
    first: PerRay,
    kernels: ModuleType,
) -> Samples:
    """Sample rays in occupied cells; `first` as in `render_rays`."""
    near, far = cube_bounds(origins, directions, occupancy.radius)
    starts, t_mid = kernels.march(
        occupancy.occupied, occupancy.radius, origins, directions, near, far, first, step
    )
    ray = torch.repeat_interleave(starts.diff(), output_size=len(t_mid))
    return Samples(starts, ray, t_mid, origins[ray] + t_mid[:, None] * directions[ray])


@torch.no_grad()
def cull(
    samples: Samples,
    density: Float[Tensor, "samples"],
    step: float,
    min_transmittance: float,
    kernels: ModuleType,
) -> Samples:
    """Remove samples whose transmittance is at most `min_transmittance`."""
    keep = kernels.visible(density * step, samples.starts, min_transmittance)
    starts = torch.cat([samples.starts.new_zeros(1), keep.cumsum(0)])[samples.starts]
    return Samples(starts, samples.ray[keep], samples.t_mid[keep], samples.points[keep])


def render_rays(
    query: QueryFn,
    occupancy: OccupancyGrid,
    origins: Vectors,
    directions: Vectors,
    config: RenderConfig,
    background: Vectors | Float[Tensor, "3"],
    first: PerRay | None = None,
    light: Vectors | None = None,
    orientation: bool = False,
    depth_variance: bool = False,
    density_fn: DensityFn | None = None,
    frozen: bool = False,
) -> Rays:
    """Render rays over a background.

    Args:
        first: Position of each ray's first sample in its first interval, in [0, 1]; by default the
            middle.
        light: Unit direction towards the light; by default against the ray. Albedo ignores it.
        orientation: Also compute the orientation loss, sum of w max(0, n . d)^2 (Ref-NeRF,
            arXiv:2112.03907, eq. 11), at four more density queries per sample.
        depth_variance: Also compute the variance of the depth along each ray, by normalized weights
            (HiFA, arXiv:2305.18766).
        density_fn: The density alone, if that is less work than `query`.
        frozen: `density_fn` is the density, without gradients, and `query` is asked for the colours
            of those samples alone that contribute more than NEGLIGIBLE to their ray's; the others
            are black.
    """
    kernels = kernels_for(origins.device, config.kernels)
    step = config.step(occupancy.radius)
    first = directions.new_full((len(directions),), 0.5) if first is None else first
    samples = march(occupancy, origins, directions, step, first, kernels)
    density_fn = density_fn or (lambda points: query(points, None)[0])
    if config.min_transmittance > 0 and not frozen:
        with torch.no_grad():
            density = density_fn(samples.points)
        samples = cull(samples, density, step, config.min_transmittance, kernels)
    if frozen:
        density, rgb = _coloured(query, density_fn, samples, directions, step)
    else:
        density, rgb = query(samples.points, directions[samples.ray])
    facing_away = rgb.new_zeros(len(rgb), 1)
    if orientation or config.shading != "albedo":
        normals = density_normals(density_fn, samples.points)
        cosine = (normals * directions[samples.ray]).sum(-1, keepdim=True)
        facing_away = cosine.clamp(min=0).square()
        light = -directions if light is None else light
        rgb = shade(rgb, normals, light[samples.ray], config.shading)
    values = [rgb, torch.ones_like(facing_away), samples.t_mid[:, None], facing_away]
    if depth_variance:
        off = samples.t_mid - origins.norm(dim=-1)[samples.ray]  # near 0: squares stay exact
        values += [torch.stack([off, off.square()], dim=1)]
    sums = kernels.composite(density * step, torch.cat(values, dim=1), samples.starts)
    opacity = sums[:, 3]
    colours = (sums[:, :3] + (1 - opacity)[:, None] * background).clamp(0, 1)
    depth = torch.where(opacity > 1e-4, sums[:, 4] / opacity.clamp(min=1e-4), 0)
    variance = torch.zeros_like(opacity)
    if depth_variance:
        mean, square = (sums[:, 6:] / opacity[:, None].clamp(min=0.5)).unbind(1)
        variance = torch.where(opacity > 0.5, (square - mean.square()).clamp(min=0), 0)
    return Rays(colours, opacity, depth, sums[:, 5], variance, len(samples.t_mid))


def _coloured(
    query: QueryFn, density_fn: DensityFn, samples: Samples, directions: Vectors, step: float
) -> tuple[Float[Tensor, "samples"], Float[Tensor, "samples 3"]]:
    """Densities without gradients, and the colours of the samples that show."""
    with torch.no_grad():
        density = density_fn(samples.points)
        shows = sample_weights(density * step, samples.starts) > NEGLIGIBLE
    rgb = query(samples.points[shows], directions[samples.ray[shows]])[1]
    return density, rgb.new_zeros(len(shows), 3).index_put((shows,), rgb)


def camera_light(cameras: Cameras) -> Float[Tensor, "b 3"]:
    """Unit directions from the origin to the cameras."""
    return normalize(cameras.pose[:, :, 3], dim=-1)


def render(
    query: QueryFn,
    occupancy: OccupancyGrid,
    cameras: Cameras,
    resolution: int,
    config: RenderConfig,
    background: Float[Tensor, "... 3"],
    jitter: Float[Tensor, "b {resolution} {resolution}"] | None = None,
    light: Float[Tensor, "b 3"] | None = None,
    orientation: bool = False,
    depth_variance: bool = False,
    density_fn: DensityFn | None = None,
    frozen: bool = False,
) -> Image:
    """Render square images.

    Args:
        background: Colours in [0, 1]: one [3], one per view [b, 3], or one per ray
            [b * resolution^2, 3].
        jitter: As `first` in `render_rays`.
        light: Unit direction towards the light, per view; by default that of the camera.
        orientation, depth_variance, density_fn, frozen: As in `render_rays`.
    """
    rays = camera_rays(cameras, resolution, resolution)
    origins, directions = (value.reshape(-1, 3) for value in rays)
    if background.shape == (len(cameras), 3):
        background = background.repeat_interleave(resolution**2, 0)
    first = None if jitter is None else jitter.reshape(-1)
    light = (camera_light(cameras) if light is None else light).repeat_interleave(resolution**2, 0)
    return render_rays(
        query,
        occupancy,
        origins,
        directions,
        config,
        background,
        first,
        light,
        orientation,
        depth_variance,
        density_fn,
        frozen,
    ).image(resolution)
