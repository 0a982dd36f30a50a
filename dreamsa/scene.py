"""A scene: field, occupancy and background together; what is trained, saved and rendered."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamsa.fields.field import FieldConfig, HashField, Sample
from dreamsa.randomness import generator_for
from dreamsa.render.background import SOLID, LearnedBackground
from dreamsa.render.cameras import Cameras, camera_rays
from dreamsa.render.occupancy import OccupancyGrid
from dreamsa.render.volume import RenderConfig, View, render

ALPHA_THRESHOLD = 0.01
"""A cell is sampled where one step through it would have at least this opacity."""


class Scene(nn.Module):
    """A field in its cube, with its occupancy grid and, where it has one, a learned background."""

    def __init__(self, field: FieldConfig, render: RenderConfig, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.render_config = render
        self.field = HashField(field, generator_for(seed, 0, "field", device))
        learned = render.background == "learned"
        self.environment = LearnedBackground(generator_for(seed, 0, "background", device)) if learned else None
        threshold = ALPHA_THRESHOLD / render.step(field.radius)
        self.occupancy = OccupancyGrid(render.occupancy, field.radius, threshold, device)

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        return self.field.query(points).density

    def query(self, points: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"] | None = None) -> Sample:
        """The field as the renderer sees it: what lies in cells that are not occupied is empty."""
        cells = self.occupancy.occupied.shape[0]
        at = ((points + self.occupancy.radius) * (cells / (2 * self.occupancy.radius))).long()
        inside = ((at >= 0) & (at < cells)).all(-1)
        at = at.clamp(0, cells - 1)
        there = inside & self.occupancy.occupied[at[:, 0], at[:, 1], at[:, 2]]
        density, rgb = points.new_zeros(len(points)), points.new_zeros(len(points), 3)
        density[there], rgb[there] = self.field.query(points[there], None if directions is None else directions[there])
        return Sample(density, rgb)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """The corners of what is occupied, world units; both are 0 where nothing is."""
        occupied = self.occupancy.occupied.nonzero().cpu().numpy()
        if not len(occupied):
            return np.zeros(3), np.zeros(3)
        scale = 2 * self.occupancy.radius / self.occupancy.occupied.shape[0]
        return occupied.min(0) * scale - self.occupancy.radius, (occupied.max(0) + 1) * scale - self.occupancy.radius

    def refresh(self, seed: int, step: int, full: bool) -> None:
        """Look at the occupancy again; `full` forgets what was seen before."""
        rng = generator_for(seed, step, "occupancy", self.occupancy.density.device)
        (self.occupancy.refresh if full else self.occupancy.update)(self.density, rng)

    def groups(self, lr: float, mlp_lr: float, background_lr: float) -> list[dict]:
        """Parameter groups, named, for an optimizer."""
        groups = [
            {"name": "grid", "params": [self.field.table], "lr": lr},
            {"name": "mlp", "params": [p for name, p in self.field.named_parameters() if name != "table"], "lr": mlp_lr},
        ]
        if self.environment is not None:
            groups.append({"name": "background", "params": list(self.environment.parameters()), "lr": background_lr})
        return groups

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps of the scene."""
        return {**self.state_dict(), "occupancy": self.occupancy.density}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`.

        Raises:
            ValueError: The tensors are not those of a scene of this configuration.
        """
        parameters = {name: value for name, value in tensors.items() if name != "occupancy"}
        found = {name: tuple(value.shape) for name, value in parameters.items()}
        wanted = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        if found != wanted or "occupancy" not in tensors:
            odd = sorted(set(found.items()) ^ set(wanted.items()))[:2]
            raise ValueError(f"The scene's tensors do not fit its configuration: {odd or 'no occupancy'}. Use the config.json beside it.")
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise ValueError("The scene's tensors hold values that are not finite. Use an earlier checkpoint.")
        self.load_state_dict(parameters)
        self.occupancy.restore(tensors["occupancy"])

    def background(self, cameras: Cameras, resolution: int, drawn: Float[Tensor, "b 3"] | None = None) -> Float[Tensor, "... 3"]:
        """Colours behind the object: the learned ones, else what was drawn, else the middle grey or the plain colour."""
        device = self.occupancy.density.device
        if self.environment is not None:
            return self.environment(camera_rays(cameras, resolution, resolution)[1].reshape(-1, 3))
        name = self.render_config.background
        if name == "random" and drawn is not None:
            return drawn
        return torch.full((3,), SOLID["grey" if name == "random" else name], device=device)

    @torch.no_grad()
    def look(self, cameras: Cameras, resolution: int, background: float | None = None) -> View:
        """Render for people: no jitter, albedo as trained, over a grey in [0, 1] or the scene's own background."""
        views, cameras = [], cameras.to(self.occupancy.density.device)
        for i in range(len(cameras)):
            camera = cameras[i : i + 1]
            behind = self.background(camera, resolution) if background is None else torch.full((3,), background, device=camera.pose.device)
            views.append(render(self.field.query, self.occupancy, camera, resolution, self.render_config, behind))
        return View(
            torch.cat([v.rgb for v in views]),
            torch.cat([v.opacity for v in views]),
            torch.cat([v.depth for v in views]),
            views[0].orientation,
            sum(v.samples for v in views),
        )


def fresh_parameters(field: FieldConfig, render: RenderConfig, seed: int) -> list[Tensor]:
    """The parameters of another random scene, in the order of an optimizer's groups; on the CPU, whatever runs the field's own grid."""
    groups = Scene(replace(field, backend="torch"), render, seed).groups(1.0, 1.0, 1.0)
    return [p.detach() for group in groups for p in group["params"]]
