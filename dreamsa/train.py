"""THE FILE TO READ FIRST: one step of score distillation, and the loop around it.

Text-to-3D is one loop with four replaceable parts: a scene (field and renderer), a score model, a
prompt, an annealer.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

import torch
from jaxtyping import Float, Int64
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from dreamsa import checkpoint
from dreamsa.annealing import Annealer, Rule, ScaleRate, Window
from dreamsa.checkpoint import CheckpointError
from dreamsa.choices import Role
from dreamsa.config import LossConfig, OptimizerConfig, RunConfig
from dreamsa.device import Processes
from dreamsa.distill.methods import METHODS, Noised, clip_per_view, distillation_loss
from dreamsa.distill.noise import consistent_noise, refreshed
from dreamsa.distill.timesteps import sample_timesteps
from dreamsa.editing import distillation_sign, learning_rate_factor, rules_for
from dreamsa.guidance.noise import Latents, Timesteps
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import GuidanceFailed, ScoreModel
from dreamsa.randomness import generator_for
from dreamsa.rendering.background import random_grey
from dreamsa.rendering.cameras import Cameras, sample_cameras
from dreamsa.rendering.volume import Image, render
from dreamsa.scene import Scene
from dreamsa.settings import first_problem
from dreamsa.signals import deferred_interrupt

MAX_SKIPPED = 10
"""Consecutive steps that may be skipped because a gradient was not finite; and the number of all
skipped ones from which a run ends if they are more than the others."""
MAX_GRADIENT = 1e18
"""Above it, squares overflow in Adam's second moment: such a gradient counts as not finite."""


class Draw(NamedTuple):
    """Random numbers of one step, drawn on the CPU for the views of all processes, so that neither
    the device nor the number of processes changes them."""

    cameras: Cameras
    jitter: Float[Tensor, "b h w"]  # in [0, 1]
    background: Float[Tensor, "b 3"]  # in [0, 1]
    light: Float[Tensor, "b 3"]  # unit
    timesteps: Int64[Tensor, "b"]

    def part(self, index: slice) -> "Draw":
        return Draw(self.cameras[index], *(value[index] for value in self[1:]))

    def to(self, device: torch.device) -> "Draw":
        return Draw(self.cameras.to(device), *(value.to(device) for value in self[1:]))


class StepResult(NamedTuple):
    """Numbers of one step. The value of a distillation loss is meaningless; these are not."""

    step: int
    phase: str
    """ascend or descend; controls have names of their own."""
    grad_norm: float
    """|g|, g the distillation gradient in the latents before its sign."""
    grad_dot_latents: float
    """<g, z> / b."""
    opacity: float
    """Mean over the pixels."""
    lr: float
    """Of the hash grid, by the schedule; an ascent scales it further."""
    seconds: float
    skipped: bool
    """Whether the gradient was not finite; the step is then repeated with other random numbers."""
    unet_calls: int = 2
    """Noise predictions per view."""


Objective = Callable[[RunConfig, int, Float[Tensor, ""], Image], Float[Tensor, ""]]
"""(configuration, step, distillation loss, image) -> loss to descend."""


def regularizers(image: Image, config: LossConfig, progress: float) -> Float[Tensor, ""]:
    """Weighted sum of the geometric regularizers, each a mean over rays (DreamFusion, app. A.2;
    entropy: stable-dreamfusion)."""
    opacity = image.opacity.clamp(1e-3, 1 - 1e-3)
    sparse = (image.opacity.square() + 0.01).sqrt().mean()
    entropy = torch.nn.functional.binary_cross_entropy(opacity, opacity)
    return (
        config.opacity * sparse
        + config.entropy * progress * entropy
        + config.orientation * image.orientation
        + config.depth_variance * min(2 * progress, 1.0) * image.depth_variance
        + (config.smoothness * progress * smoothness(image) if config.smoothness else 0)
    )


def smoothness(image: Image) -> Float[Tensor, ""]:
    """Anisotropic total variation of the colours inside the object: mean absolute difference of
    neighbouring pixels that are both covered by more than half (Rudin, Osher and Fatemi 1992)."""
    covered, rgb = (image.opacity > 0.5)[:, None], image.rgb
    across = (rgb.diff(dim=-1).abs() * (covered[..., 1:] & covered[..., :-1])).mean()
    down = (rgb.diff(dim=-2).abs() * (covered[..., 1:, :] & covered[..., :-1, :])).mean()
    return across + down


CORRELATION_POINTS = 8192
"""Of `decorrelation`."""


def decorrelation(one: Float[Tensor, "n"], other: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """1 - Pearson's correlation, in [0, 2]; 1 if either is constant."""
    a, b = one - one.mean(), other - other.mean()
    return 1 - (a * b).mean() / (a.square().mean() * b.square().mean()).sqrt().clamp(min=1e-12)


def identity_loss(config: RunConfig, scene: Scene, step: int) -> Float[Tensor, ""] | float:
    """Weighted decorrelation of an edit's densities from its parent's (Vox-E, arXiv:2303.12048)."""
    if not config.loss.correlation or scene.below is None or scene.keeps_shape:
        return 0.0
    rng = generator_for(config.seed, step, "correlation")
    unit = torch.rand(CORRELATION_POINTS, 3, generator=rng).to(scene.occupancy.density)
    points = (2 * unit - 1) * scene.occupancy.radius
    return config.loss.correlation * decorrelation(
        scene.density(points), scene.below.query(points).density
    )


def objective(
    config: RunConfig, step: int, distillation: Float[Tensor, ""], image: Image
) -> Float[Tensor, ""]:
    """Distillation plus regularizers. The sign of an ascent is in the distillation loss;
    regularizers always descend."""
    return distillation + regularizers(image, config.loss, step / config.steps)


class Method(NamedTuple):
    """How a run is annealed and what it minimizes, where that is not as its configuration says
    (controls of comparisons)."""

    rules: list[Rule]
    objective: Objective = objective


@dataclass
class Training:
    """Mutable training state."""

    config: RunConfig
    scene: Scene
    optimizer: torch.optim.Optimizer
    annealer: Annealer
    objective: Objective = objective
    skipped_in_a_row: int = 0
    skipped: int = 0
    prepared: bool = False
    """What precedes the coming step has been done: events, occupancy grid, sharpness."""
    in_step: bool = False
    """The state is changing, or its change was interrupted: it must not be saved."""

    @property
    def step(self) -> int:
        """Optimizer steps done: the one clock of all schedules. Skipped steps do not count."""
        return self.annealer.step

    def save(self, folder: Path) -> Path:
        """Write a checkpoint of this step into a folder of checkpoints; see
        `dreamsa.checkpoint.save_step`."""
        assert not self.in_step, "a half-done step must not be saved"
        tensors, optimizer = checkpoint.pack_optimizer(self.optimizer)
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "prepared": self.prepared,
            "annealer": self.annealer.state_dict(),
            "optimizer": optimizer,
        }
        groups = {"scene": self.scene.tensors(), "training": tensors}
        return checkpoint.save_step(folder, self.step, groups, state)

    def load(self, folder: Path) -> None:
        """Restore a checkpoint exactly.

        Raises:
            CheckpointError: It is damaged, or not of this configuration.
        """
        tensors, known = checkpoint.load(folder)
        try:
            state = _state.validate_python(known, strict=True)
            if state["step"] != int(folder.name) or state["step"] > self.config.steps:
                raise ValueError(f"step {state['step']} of {self.config.steps}")
            self.scene.restore(tensors["scene"])
            checkpoint.unpack_optimizer(self.optimizer, tensors["training"], state["optimizer"])
        except (ValueError, KeyError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else error
            raise CheckpointError(f"{folder} does not fit its run: {reason}.") from error
        self.annealer.load_state_dict({**state["annealer"], "step": state["step"]})
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.prepared = state.get("prepared", self.skipped_in_a_row > 0)

    def is_finite(self) -> bool:
        return all(bool(value.isfinite().all()) for value in self.scene.tensors().values())


Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Optimizer(TypedDict):
    scalars: dict[str, float]
    groups: list[dict[str, Any]]


class _Annealer(TypedDict):
    previous: Annotated[float, Field(allow_inf_nan=False)] | None
    lowest: Annotated[float, Field(allow_inf_nan=False)] | None
    ended: list[Count]
    begun: NotRequired[bool]


class State(TypedDict):
    """What state.json must hold; older ones lack `prepared`."""

    step: Count
    skipped: Count
    skipped_in_a_row: Count
    prepared: NotRequired[bool]
    annealer: _Annealer
    optimizer: _Optimizer


_state = TypeAdapter(State)


def new_optimizer(scene: Scene, config: OptimizerConfig) -> torch.optim.Adam:
    """Adam as in Instant-NGP and threestudio: betas (0.9, 0.99), eps 1e-15; one named group per
    kind of parameter."""
    groups = scene.groups(config.lr, config.mlp_lr, config.background_lr)
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def new_training(
    config: RunConfig, device: torch.device | str = "cpu", method: Method | None = None
) -> Training:
    """A run before its first step."""
    scene = Scene(config.field, config.render, config.seed, device, config.layers)
    optimizer = new_optimizer(scene, config.optimizer)
    schedule = Rule(Window(0, config.steps), ScaleRate(learning_rate_factor(config)), phase=None)
    method = method or Method(rules_for(config))
    return Training(
        config, scene, optimizer, Annealer(optimizer, [schedule, *method.rules]), method.objective
    )


def draw_views(config: RunConfig, step: int, timesteps: int, retry: int = 0) -> Draw:
    """Draw the views of a step; `retry` counts the attempts that were skipped."""
    rng = generator_for(config.seed, step, _stream("views", retry))
    b, size = config.camera.batch, config.camera.resolution
    cameras = sample_cameras(config.camera, rng)
    light = cameras.pose[:, :, 3] + torch.randn(b, 3, generator=rng)
    return Draw(
        cameras,
        torch.rand(b, size, size, generator=rng),
        random_grey(b, rng),
        torch.nn.functional.normalize(light, dim=-1),
        sample_timesteps(config.distill, step, config.steps, b, rng, timesteps),
    )


def draw_noise(
    config: RunConfig, step: int, shape: torch.Size, retry: int = 0
) -> Float[Tensor, "b c h w"]:
    """Noise for the latents of all processes' views, on the CPU."""
    rng = generator_for(config.seed, step, _stream("noise", retry))
    return torch.randn(config.camera.batch, *shape[1:], generator=rng)


def _stream(name: str, retry: int) -> str:
    return f"{name}, retry {retry}" if retry else name


def displacement(
    optimizer: torch.optim.Optimizer, start: Mapping[Tensor, Tensor]
) -> dict[str, float]:
    """Euclidean distance of each named parameter group from `start`."""
    groups = optimizer.param_groups
    return {
        g["name"]: float(torch.stack([(p.detach() - start[p]).norm() for p in g["params"]]).norm())
        for g in groups
    }


@torch.no_grad()
def distill(
    config: RunConfig,
    step: int,
    score: ScoreModel,
    prompt: ViewPrompt,
    drawn: Draw,
    image: Image,
    latents: Latents,
    noise: Latents,
    source: Latents | None = None,
) -> tuple[Latents, int]:
    """The gradient of the configured method in the latents, and its noise predictions per view."""
    azimuth, elevation = drawn.cameras.azimuth_deg, drawn.cameras.elevation_deg
    condition, calls = prompt(azimuth, elevation), 0

    def predict(noisy: Latents, timesteps: Timesteps, *roles: Role) -> tuple[Latents, ...]:
        nonlocal calls
        asked: list[Role] = list(dict.fromkeys(condition.asked_as(role) for role in roles))
        calls += len(asked)
        found = score.predict_noise(noisy, timesteps, condition.texts(asked))
        by_role: dict[Role, Latents] = dict(zip(asked, found, strict=True))
        return tuple(by_role[condition.asked_as(role)] for role in roles)

    if config.distill.method == "consistent":
        opacity = torch.nn.functional.adaptive_avg_pool2d(image.opacity, latents.shape[-1])
        age = refreshed(config.distill.refresh, step, config.steps)
        channels = latents.shape[1]
        noise = consistent_noise(config.seed, age, azimuth, elevation, opacity, channels)
    repulsion = condition.repulsion
    noised = Noised(
        latents,
        noise,
        drawn.timesteps.to(latents.device),
        predict,
        score.alpha_bar,
        step / config.steps,
        None if repulsion is None else repulsion.to(latents.device),
        source,
    )
    grad = METHODS[config.distill.method](noised, config.distill)
    return clip_per_view(grad, config.distill.max_grad_norm), calls


@torch.no_grad()
def source_latents(
    scene: Scene, score: ScoreModel, config: RunConfig, draw: Draw
) -> Latents | None:
    """dds: the parent's latents from the views of a step, in front of the same background."""
    if config.distill.method != "dds":
        return None
    parent, size = scene.beneath(), config.camera.resolution
    assert parent is not None
    grey = parent.background(draw.cameras, size, draw.background)
    image = render(
        parent.radiance, parent.occupancy, draw.cameras, size, config.render, grey, draw.jitter,
        draw.light,
    )  # fmt: skip
    return score.encode(image.rgb)


def sharpened(config: RunConfig, step: int, sharpness: float) -> float:
    """The factor on the density from `step` on, given the one before: geometric from whatever the
    scene had at 20 % of the run to the configured one at 80 %.

    An edit that moves its scene towards a random one, whose factor is 1, moves the factor too.
    """
    if step == 0 and config.edit is not None:
        sharpness **= 1 - config.edit.eta
    begin, end = round(0.2 * config.steps), round(0.8 * config.steps)
    if step < begin:
        return sharpness
    return sharpness * (config.field.sharpness / sharpness) ** (1 / max(end - step, 1))


def _prepare(training: Training) -> None:
    """Do what precedes a step: events, sharpness, occupancy grid. Repeated attempts skip it."""
    config, scene, step = training.config, training.scene, training.step
    training.in_step = True
    training.annealer.begin()
    sharpness = scene.field.sharpness
    sharpness.fill_(sharpened(config, step, float(sharpness)))
    rebuild = step == 0 or training.annealer.edge
    if rebuild or step % config.render.occupancy_every == 0:
        scene.refresh(config.seed, step, full=rebuild)
    training.prepared, training.in_step = True, False


def sds_step(
    training: Training, score: ScoreModel, prompt: ViewPrompt, processes: Processes = Processes()
) -> StepResult:
    """One update of the scene: render it, noise it, predict the noise, step."""
    started, config, scene, step = time.monotonic(), training.config, training.scene, training.step
    retry = training.skipped_in_a_row
    if not training.prepared:
        _prepare(training)
    ours = processes.share(config.camera.batch, "camera.batch")
    drawn = draw_views(config, step, len(score.alpha_bar), retry).part(ours)
    draw = drawn.to(score.alpha_bar.device)
    query, occupancy = scene.drawn()
    image = render(
        query,
        occupancy,
        draw.cameras,
        config.camera.resolution,
        config.render,
        scene.background(draw.cameras, config.camera.resolution, draw.background),
        draw.jitter,
        draw.light,
        orientation=config.loss.orientation > 0,
        depth_variance=config.loss.depth_variance > 0,
        density_fn=scene.density,
        frozen=scene.keeps_shape,
    )
    latents = score.encode(image.rgb)  # differentiable
    noise = draw_noise(config, step, latents.shape, retry)[ours].to(latents)
    source = source_latents(scene, score, config, draw)
    args = (drawn, image, latents.detach(), noise, source)
    grad, calls = distill(config, step, score, prompt, *args)
    phase = training.annealer.phase
    loss = training.objective(
        config, step, distillation_loss(latents, distillation_sign(config, step) * grad), image
    )
    loss = loss + identity_loss(config, scene, step)
    training.optimizer.zero_grad()
    (loss / processes.count).backward()
    gradients = [p.grad for p in scene.parameters() if p.grad is not None]
    processes.sum_(gradients)
    finite = bool(torch.nn.utils.get_total_norm(gradients, inf) < MAX_GRADIENT)
    training.in_step = True
    if finite:
        training.optimizer.step()  # the annealer's rules act inside
    training.prepared = not finite
    training.skipped += not finite
    training.skipped_in_a_row = 0 if finite else retry + 1
    training.in_step = False

    dot = distillation_loss(latents.detach(), grad)
    numbers = torch.stack(
        [grad.norm(), dot, image.opacity.detach().mean()]
    ).tolist()  # one transfer for all three
    lr = config.optimizer.lr * learning_rate_factor(config)(step)
    seconds = time.monotonic() - started
    return StepResult(
        step, phase, *numbers, lr=lr, seconds=seconds, skipped=not finite, unet_calls=calls
    )


def train(
    training: Training, score: ScoreModel, prompt: ViewPrompt, processes: Processes = Processes()
) -> Iterator[StepResult]:
    """Train to the last step, from wherever `training` stands; yields after every step. Close the
    iterator to stop.

    Raises:
        GuidanceFailed: The gradient was not finite in MAX_SKIPPED attempts in a row, or in more
            than half of all.
        torch.OutOfMemoryError: A step did not fit into memory twice.
    """
    while training.step < training.config.steps:
        with deferred_interrupt():
            try:
                result = sds_step(training, score, prompt, processes)
            except torch.OutOfMemoryError:  # once more with all that is cached given back
                if training.in_step:
                    raise
                training.optimizer.zero_grad()
                torch.cuda.empty_cache()
                result = sds_step(training, score, prompt, processes)
        row, skipped = training.skipped_in_a_row, training.skipped
        if row >= MAX_SKIPPED or skipped > max(MAX_SKIPPED, training.step):
            raise GuidanceFailed(
                f"Step {training.step} of {training.config.prompt!r} was skipped {row} times in a "
                f"row, {skipped} steps in all, because the guidance was not finite. "
                "Try --set model.dtype=float32 or a lower guidance scale."
            )
        yield result
