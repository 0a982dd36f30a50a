"""A scene: field, occupancy grid and background. It is trained, saved and rendered."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamsa.config import FieldConfig, FreeConfig, RenderConfig
from dreamsa.fields.field import HashField, Sample
from dreamsa.keeping import Below, radiance
from dreamsa.randomness import generator_for
from dreamsa.rendering.background import SOLID, LearnedBackground
from dreamsa.rendering.cameras import Cameras, camera_rays
from dreamsa.rendering.occupancy import OccupancyGrid
from dreamsa.rendering.volume import Image, QueryFn, Rays, camera_light, render_rays

ALPHA_THRESHOLD = 0.01
"""Opacity of one step from which a cell counts as occupied."""

RAY_CHUNK = 2**16
"""Maximum number of rays that `Scene.view` renders at a time, which bounds memory."""


class Scene(nn.Module):
    """A field in its cube, with its occupancy grid and, if configured, a learned background.

    The scene of an edit that keeps a part of its parent stands on the parent's, which is frozen.
    """

    def __init__(
        self,
        field: FieldConfig,
        render: RenderConfig,
        seed: int,
        device: torch.device | str = "cpu",
        layers: Sequence[FreeConfig] = (),
    ) -> None:
        """
        Args:
            layers: As `RunConfig.layers`: what may change of the scenes beneath; none by default.
        """
        super().__init__()
        self.render_config = render
        self.field = HashField(field, generator_for(seed, 0, "field", device))
        self.environment = None
        if render.background == "learned":
            self.environment = LearnedBackground(generator_for(seed, 0, "background", device))
        threshold = ALPHA_THRESHOLD / render.step(field.radius)
        self.occupancy = OccupancyGrid(render.occupancy, field.radius, threshold, device)
        self.below = Below(field, layers, render.occupancy, device) if layers else None

    @property
    def keeps_shape(self) -> bool:
        """Whether the density is frozen."""
        return self.below is not None and self.below.keeps_shape

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """In 1/world unit."""
        if self.below is not None:
            return self.below.density(self.field, points)
        return self.field.query(points).density

    def radiance(
        self, points: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"] | None = None
    ) -> Sample:
        """Density and colour, whether cells are occupied or not; what is rendered."""
        return radiance(self.field, self.below, points, directions)

    def drawn(self) -> tuple[QueryFn, OccupancyGrid]:
        """What a training step queries and samples: of a frozen density, colours alone, in its
        dense cells."""
        if self.below is None or not self.below.keeps_shape:
            return self.radiance, self.occupancy
        colours = partial(self.below.compose, self.field, only="colour")
        return colours, self.occupancy.undilated()

    def query(
        self, points: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"] | None = None
    ) -> Sample:
        """`radiance` in occupied cells; 0 elsewhere."""
        occupied = self.occupancy.contains(points)
        density, rgb = points.new_zeros(len(points)), points.new_zeros(len(points), 3)
        density[occupied], rgb[occupied] = self.radiance(
            points[occupied], None if directions is None else directions[occupied]
        )
        return Sample(density, rgb)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounding box (low, high) of the occupied cells, world units; zeros if there are none."""
        occupied = self.occupancy.occupied.nonzero().cpu().numpy()
        if not len(occupied):
            return np.zeros(3), np.zeros(3)
        radius = self.occupancy.radius
        scale = 2 * radius / self.occupancy.occupied.shape[0]
        return occupied.min(0) * scale - radius, (occupied.max(0) + 1) * scale - radius

    def refresh(self, seed: int, step: int, full: bool) -> None:
        """Update the occupancy grid; `full` rebuilds it. A frozen density keeps its own."""
        if self.keeps_shape:
            return
        rng = generator_for(seed, step, "occupancy", self.occupancy.density.device)
        (self.occupancy.refresh if full else self.occupancy.update)(self.density, rng)

    def groups(self, lr: float, mlp_lr: float, background_lr: float) -> list[dict]:
        """Parameter groups for an optimizer: grid, mlp and any background."""
        mlp = [value for name, value in self.field.named_parameters() if name != "table"]
        groups = [("grid", [self.field.table], lr), ("mlp", mlp, mlp_lr)]
        if self.environment is not None:
            groups.append(("background", list(self.environment.parameters()), background_lr))
        return [{"name": name, "params": params, "lr": rate} for name, params, rate in groups]

    def tensors(self) -> dict[str, Tensor]:
        return {**self.state_dict(), "occupancy": self.occupancy.density}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of a checkpoint.

        Raises:
            ValueError: The tensors do not fit the configuration, or are not finite.
        """
        one = torch.ones((), device=self.field.sharpness.device)
        tensors = {"field.sharpness": one, **tensors}  # scenes of earlier versions have none
        parameters = {name: value for name, value in tensors.items() if name != "occupancy"}
        found, wanted = (
            {
                (name, tuple(value.shape), value.is_floating_point())
                for name, value in values.items()
            }
            for values in (tensors, self.tensors())
        )
        if found != wanted:
            odd = sorted(found ^ wanted)[:2]
            raise ValueError(
                f"The scene's tensors do not fit its configuration: {odd}. "
                "Use the config.json beside it."
            )
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise ValueError(
                "The scene's tensors hold values that are not finite. Use an earlier checkpoint."
            )
        self.load_state_dict(parameters)
        self.occupancy.restore(tensors["occupancy"])
        self._cover()

    def begin_from(self, parent: "Scene", seed: int) -> None:
        """Start an edit: stand on the parent where that is kept, with a field that is the parent's,
        or one fitted to it if the parent's scene consists of several."""
        if self.below is not None:
            self.below.field.load_state_dict(parent.field.state_dict())
            self.below.occupied.copy_(parent.occupancy.occupied)
            if self.below.below is not None and parent.below is not None:
                self.below.below.load_state_dict(parent.below.state_dict())
        self.field.load_state_dict(parent.field.state_dict())
        if self.environment is not None and parent.environment is not None:
            self.environment.load_state_dict(parent.environment.state_dict())
        if parent.below is not None:
            imitate(self, parent, seed)
        self.occupancy.restore(parent.occupancy.density)
        self._cover()

    def beneath(self) -> "Scene | None":
        """The scene that this one stands on, on its own."""
        if self.below is None:
            return None
        device = self.occupancy.density.device
        layers = self.below.below.layers if self.below.below is not None else ()
        scene = Scene(self.field.config, self.render_config, 0, device, layers)
        scene.field.load_state_dict(self.below.field.state_dict())
        if scene.below is not None and self.below.below is not None:
            scene.below.load_state_dict(self.below.below.state_dict())
        scene.occupancy.occupied = self.below.occupied
        return scene

    def set_region(self, distance: Float[Tensor, "n n n"]) -> None:
        """Set the automatic region, as signed distances of the cells' centres."""
        assert self.below is not None
        assert self.below.distance is not None
        self.below.distance.copy_(distance)
        self._cover()

    def _cover(self) -> None:
        """Occupy what the scene beneath occupies, and other cells only where they may change."""
        if self.below is not None:
            self.occupancy.stand_on(self.below.occupied, self.below.free_cells())

    def background(
        self, cameras: Cameras, resolution: int, sampled: Float[Tensor, "b 3"] | None = None
    ) -> Float[Tensor, "... 3"]:
        """Background colours: one per ray if learned, else one per view or a single one.

        `sampled` are the colours of a random background, by default a medium grey.
        """
        if self.environment is not None:
            return self.environment(camera_rays(cameras, resolution, resolution)[1].reshape(-1, 3))
        if self.render_config.background == "random" and sampled is not None:
            return sampled
        return self._solid_background()

    @torch.no_grad()
    def view(self, cameras: Cameras, resolution: int, background: float | None = None) -> Image:
        """Render without jitter, lit from the camera, over a grey in [0, 1] or the background."""
        cameras = cameras.to(self.occupancy.density.device)
        query, grid, config = self.radiance, self.occupancy, self.render_config
        parts: list[Rays] = []
        for i in range(len(cameras)):
            rays = camera_rays(cameras[i : i + 1], resolution, resolution)
            chunks = (value.reshape(-1, 3).split(RAY_CHUNK) for value in rays)
            light = camera_light(cameras[i : i + 1])
            for origins, directions in zip(*chunks, strict=True):
                if background is None and self.environment is not None:
                    colours = self.environment(directions)
                else:
                    colours = self._solid_background(background)
                lights = light.expand_as(directions)
                shown = render_rays(
                    query,
                    grid,
                    origins,
                    directions,
                    config,
                    colours,
                    light=lights,
                    density_fn=self.density,
                )
                parts.append(shown)
        return Rays.concatenate(parts).image(resolution)

    def _solid_background(self, grey: float | None = None) -> Float[Tensor, "3"]:
        if grey is None:
            name = self.render_config.background
            grey = SOLID["grey" if name == "random" else name]
        return torch.full((3,), float(grey), device=self.occupancy.density.device)


IMITATION_STEPS, IMITATION_POINTS = 400, 8192
"""Of `imitate`."""


def imitate(scene: Scene, other: Scene, seed: int) -> None:
    """Fit a scene's field, which begins as `other`'s uppermost one, to all of `other`.

    Opacities of a step and colours are compared at random points of occupied cells.
    """
    cells, radius = other.occupancy.occupied.nonzero(), other.occupancy.radius
    size, step = 2 * radius / len(other.occupancy.occupied), scene.render_config.step(radius)
    optimizer = torch.optim.Adam(scene.field.parameters(), lr=5e-3, betas=(0.9, 0.99), eps=1e-15)
    if not len(cells):
        return
    for number in range(IMITATION_STEPS):
        rng = generator_for(seed, number, "imitation")
        chosen = cells[torch.randint(len(cells), (IMITATION_POINTS,), generator=rng).to(cells)]
        offsets = torch.rand(chosen.shape, generator=rng).to(scene.field.table)
        points = (chosen + offsets) * size - radius
        up = torch.tensor([[0.0, 0.0, 1.0]], device=points.device).expand_as(points)
        with torch.no_grad():
            wanted = other.radiance(points, up)
            opacity = -torch.expm1(-wanted.density * step)
        found = scene.field.query(points, up)
        error = (-torch.expm1(-found.density * step) - opacity).square()
        error = error + opacity * (found.rgb - wanted.rgb).square().sum(-1)
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - number / IMITATION_STEPS)
        optimizer.zero_grad()
        error.mean().backward()
        optimizer.step()


def fresh_parameters(field: FieldConfig, render: RenderConfig, seed: int) -> list[Tensor]:
    """Parameters of another random scene on the CPU, in the order of the optimizer's groups."""
    groups = Scene(replace(field, backend="torch"), render, seed).groups(1.0, 1.0, 1.0)
    return [p.detach() for group in groups for p in group["params"]]
