"""Volume rendering as pure functions of `query(points)`: march, weight, accumulate (Max 1995; NeRF, eq. 3).

Samples are packed: those of ray r are rows starts[r] to starts[r + 1]. Every sample stands for an interval of length
`step` around its `t_mid`. On CPU tensors numba's kernels run, on a GPU Triton's; the torch versions here define them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dreamsa.accelerator import why_not
from dreamsa.render.background import BackgroundName
from dreamsa.render.cameras import Cameras, camera_rays
from dreamsa.render.occupancy import OccupancyGrid
from dreamsa.render.shading import ShadingName, density_normals, shade

QueryFn = Callable[[Float[Tensor, "n 3"], Float[Tensor, "n 3"] | None], tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]]
"""points, unit directions along the rays (None where only the density is wanted) -> (density in 1/world unit, rgb in [0, 1])."""


@dataclass(frozen=True)
class RenderConfig:
    samples: int = 96
    """Steps along the longest diagonal of the scene's cube."""
    occupancy: int = 32
    """Cells per side of the occupancy grid."""
    occupancy_every: int = 16
    """Steps between two looks at it."""
    background: BackgroundName = "random"
    shading: ShadingName = "albedo"
    hidden: float = 1e-3
    """Samples that get at most this share of the light are left out, after a look at the density without gradient; 0 keeps all."""
    kernels: Literal["auto", "torch"] = "auto"
    """`torch` forbids the kernels of numba and Triton (for comparison)."""

    def __post_init__(self) -> None:
        if not 8 <= self.samples <= 4096:
            raise ValueError(f"render.samples must lie in [8, 4096], got {self.samples}.")
        if not 4 <= self.occupancy <= 256:
            raise ValueError(f"render.occupancy must lie in [4, 256], got {self.occupancy}.")
        if not 0 <= self.hidden < 1:
            raise ValueError(f"render.hidden must lie in [0, 1), got {self.hidden}.")
        if not 1 <= self.occupancy_every <= 1000:
            raise ValueError(f"render.occupancy_every must lie in [1, 1000], got {self.occupancy_every}.")

    def step(self, radius: float) -> float:
        """Distance between samples, world units, in a cube of half side `radius`."""
        return 2 * radius * 3**0.5 / self.samples


class Samples(NamedTuple):
    starts: Int64[Tensor, "edges"]  # one more than rays
    ray: Int64[Tensor, "samples"]
    t_mid: Float[Tensor, "samples"]  # world units from the ray's origin
    points: Float[Tensor, "samples 3"]


class View(NamedTuple):
    """What cameras see. Everything is differentiable in the field's parameters but `samples`."""

    rgb: Float[Tensor, "b 3 h w"]  # in [0, 1], over the background
    opacity: Float[Tensor, "b h w"]  # in [0, 1]
    depth: Float[Tensor, "b h w"]  # expected distance along the ray given a hit; 0 where opacity is 0
    orientation: Float[Tensor, ""]  # mean over rays of sum w max(0, n . d)^2 (Ref-NeRF, arXiv:2112.03907, eq. 11); 0 if not asked for
    samples: int  # how many were composited


def cube_bounds(
    origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"], radius: float
) -> tuple[Float[Tensor, "rays"], Float[Tensor, "rays"]]:
    """Where rays enter and leave the cube [-radius, radius]^3: (near, far), near >= 0; far <= near means a miss."""
    inverse = 1 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    a, b = (-radius - origins) * inverse, (radius - origins) * inverse
    return torch.minimum(a, b).amax(-1).clamp(min=0), torch.maximum(a, b).amin(-1)


def march_torch(
    occupied: Bool[Tensor, "n n n"],
    radius: float,
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    near: Float[Tensor, "rays"],
    far: Float[Tensor, "rays"],
    first: Float[Tensor, "rays"],
    step: float,
) -> tuple[Int64[Tensor, "rays+1"], Float[Tensor, "samples"]]:
    """Sample midpoints near + (k + first) * step below `far` whose cell is occupied.

    Args:
        first: Per ray, where in its first interval the sample lies, in [0, 1]; 0.5 is the middle.

    Returns:
        (starts, t_mid).
    """
    steps = ((far - near) / step).ceil().clamp(min=0).long()
    ray = torch.repeat_interleave(torch.arange(len(origins), device=origins.device), steps)
    k = torch.arange(len(ray), device=ray.device) - (steps.cumsum(0) - steps)[ray]
    t = near[ray] + (k + first[ray]) * step
    cells = occupied.shape[0]
    points = origins[ray] + t[:, None] * directions[ray]
    index = ((points + radius) * (cells / (2 * radius))).long().clamp(0, cells - 1)
    keep = (t < far[ray]) & occupied[index[:, 0], index[:, 1], index[:, 2]]
    counts = torch.zeros_like(steps).index_add_(0, ray[keep], torch.ones_like(ray[keep]))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return starts, t[keep]


def march(
    occupancy: OccupancyGrid,
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    step: float,
    first: Float[Tensor, "rays"],
    kernels: "Kernels",
) -> Samples:
    """The samples of rays in occupied space; `first` as in `march_torch`."""
    near, far = cube_bounds(origins, directions, occupancy.radius)
    starts, t_mid = kernels.march(occupancy.occupied, occupancy.radius, origins, directions, near, far, first, step)
    ray = torch.repeat_interleave(torch.arange(len(origins), device=origins.device), starts.diff(), output_size=len(t_mid))
    return Samples(starts, ray, t_mid, origins[ray] + t_mid[:, None] * directions[ray])


def visible_torch(optical_depth: Float[Tensor, "samples"], starts: Int64[Tensor, "edges"], threshold: float) -> Bool[Tensor, "samples"]:
    """Which samples get more than `threshold` of the light that reaches their ray's start."""
    before = optical_depth.double().cumsum(0) - optical_depth.double()
    first = torch.repeat_interleave(torch.cat([before, before.new_zeros(1)])[starts[:-1]], starts.diff())
    return (first - before).exp() > threshold


@torch.no_grad()
def drop_hidden(samples: Samples, density: Float[Tensor, "samples"], step: float, threshold: float, kernels: "Kernels") -> Samples:
    """The samples that are not hidden behind others: what is inside an opaque object needs neither colour nor gradient."""
    keep = kernels.visible(density * step, samples.starts, threshold)
    starts = torch.cat([samples.starts.new_zeros(1), keep.cumsum(0)])[samples.starts]
    return Samples(starts, samples.ray[keep], samples.t_mid[keep], samples.points[keep])


def sample_weights(optical_depth: Float[Tensor, "samples"], starts: Int64[Tensor, "edges"]) -> Float[Tensor, "samples"]:
    """The share of a ray's light that each sample sends: exp(-sum of the depths before) * (1 - exp(-depth)).

    Args:
        optical_depth: density * step, at least 0.

    Returns:
        The weights; those of one ray sum to its opacity. The running sum is in float64: over 1e5 packed samples a float32 one
        loses 1e-3.
    """
    total = optical_depth.double().cumsum(0)
    before = total - optical_depth.double()
    counts = starts.diff()
    first = torch.repeat_interleave(torch.cat([total.new_zeros(1), total])[starts[:-1]], counts)
    return (first - before).exp().to(optical_depth) * -torch.expm1(-optical_depth)


def accumulate(
    weights: Float[Tensor, "samples"], values: Float[Tensor, "samples c"], starts: Int64[Tensor, "edges"]
) -> Float[Tensor, "edges-1 c"]:
    """Per-ray sums of weights * values. A ray without samples gives 0."""
    rays = len(starts) - 1
    ray = torch.repeat_interleave(torch.arange(rays, device=starts.device), starts.diff())
    return values.new_zeros(rays, values.shape[1]).index_add(0, ray, weights[:, None] * values)


def composite_torch(
    depth: Float[Tensor, "samples"], values: Float[Tensor, "samples c"], starts: Int64[Tensor, "edges"]
) -> Float[Tensor, "edges-1 c"]:
    """Alpha-composite packed samples of these optical depths, front to back: sums of weight * value per ray."""
    return accumulate(sample_weights(depth, starts), values, starts)


class Kernels(NamedTuple):
    """What differs between devices: functions with the meaning of those of this module that end in _torch."""

    march: Callable[..., tuple[Tensor, Tensor]] = march_torch
    visible: Callable[..., Tensor] = visible_torch
    composite: Callable[..., Tensor] = composite_torch


KernelsName = Literal["torch", "numba", "triton"]
TRITON = "dreamsa.render.kernels_triton"


def resolve_kernels(device: torch.device, choice: Literal["auto", "torch"] = "auto") -> tuple[KernelsName, str]:
    """Which kernels run on a device, and why: ("triton", "the device is a GPU")."""
    if choice == "torch":
        return "torch", "asked for"
    if device.type == "cpu":
        return "numba", "the device is a CPU"
    trouble = why_not(TRITON, device) if device.type == "cuda" else f"the device is {device.type}"
    return ("triton", "the device is a GPU") if trouble is None else ("torch", f"no Triton: {trouble}")


def kernels_for(device: torch.device, choice: Literal["auto", "torch"] = "auto") -> Kernels:
    """Numba's on a CPU, Triton's on a GPU where they run, else torch's."""
    name, _ = resolve_kernels(device, choice)
    if name == "torch":
        return Kernels()
    from dreamsa.render import kernels

    if name == "triton":
        from dreamsa.render import kernels_triton as kernels
    return Kernels(kernels.march, kernels.visible, kernels.composite)


class Rays(NamedTuple):
    """What rays see, per ray. Differentiable in the field's parameters."""

    rgb: Float[Tensor, "rays 3"]  # in [0, 1], over the background
    opacity: Float[Tensor, "rays"]  # in [0, 1]
    depth: Float[Tensor, "rays"]  # expected distance given a hit; 0 where opacity is 0
    orientation: Float[Tensor, "rays"]  # 0 if not asked for
    samples: int


def render_rays(
    query: QueryFn,
    occupancy: OccupancyGrid,
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    config: RenderConfig,
    background: Float[Tensor, "rays 3"] | Float[Tensor, "3"],
    first: Float[Tensor, "rays"],
    light: Float[Tensor, "rays 3"] | None = None,
    orientation: bool = False,
) -> Rays:
    """Render rays over a background.

    Args:
        first: Where in its first interval each ray's first sample lies, in [0, 1].
        light: Unit directions towards the light; needed where shading is not albedo.
        orientation: Also compute the orientation regulariser, which costs four more density queries a sample.
    """
    kernels = kernels_for(origins.device, config.kernels)
    step = config.step(occupancy.radius)
    samples = march(occupancy, origins, directions, step, first, kernels)
    if config.hidden > 0:
        with torch.no_grad():
            density = query(samples.points, None)[0]
        samples = drop_hidden(samples, density, step, config.hidden, kernels)
    density, rgb = query(samples.points, directions[samples.ray])
    tilt = rgb.new_zeros(len(rgb), 1)
    if orientation or config.shading != "albedo":
        normals = density_normals(lambda points: query(points, None)[0], samples.points)
        tilt = (normals * directions[samples.ray]).sum(-1, keepdim=True).clamp(min=0).square()
        towards = -directions if light is None else light
        rgb = shade(rgb, normals, towards[samples.ray], config.shading)
    values = torch.cat([rgb, torch.ones_like(tilt), samples.t_mid[:, None], tilt], dim=1)
    sums = kernels.composite(density * step, values, samples.starts)
    opacity = sums[:, 3]
    colours = (sums[:, :3] + (1 - opacity)[:, None] * background).clamp(0, 1)
    depth = torch.where(opacity > 1e-4, sums[:, 4] / opacity.clamp(min=1e-4), torch.zeros_like(opacity))
    return Rays(colours, opacity, depth, sums[:, 5], len(samples.t_mid))


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
) -> View:
    """Render square images from a batch of cameras. Nothing here is random: what is drawn at random is an argument.

    Args:
        background: Colours in [0, 1]: one [3], one per view [b, 3], or one per ray [b * resolution^2, 3].
        jitter: Where in its first interval each ray's first sample lies, in [0, 1]; None is the middle.
        light: Unit direction towards the light, per view; None is at the camera. Albedo ignores it.
        orientation: Also compute the orientation regulariser.
    """
    pixels = resolution**2
    origins, directions = (value.reshape(-1, 3) for value in camera_rays(cameras, resolution, resolution))
    first = directions.new_full((len(directions),), 0.5) if jitter is None else jitter.reshape(-1)
    towards = torch.nn.functional.normalize(cameras.pose[:, :, 3], dim=-1) if light is None else light
    behind = background.repeat_interleave(pixels, 0) if background.shape == (len(cameras), 3) else background
    rays = render_rays(query, occupancy, origins, directions, config, behind, first, towards.repeat_interleave(pixels, 0), orientation)
    shape = (len(cameras), resolution, resolution)
    return View(
        rgb=rays.rgb.view(*shape, 3).movedim(-1, 1),
        opacity=rays.opacity.view(shape),
        depth=rays.depth.view(shape),
        orientation=rays.orientation.mean(),
        samples=rays.samples,
    )
