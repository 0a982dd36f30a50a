"""THE FILE TO READ FIRST: one step of score distillation, and the loop around it.

Text-to-3D is one loop with four replaceable parts: a scene (field and renderer), a score model, a prompt, an annealer.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, inf, pi
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dreamsa import checkpoint
from dreamsa.annealing import Annealer
from dreamsa.auto import Watch, watched_steps
from dreamsa.config import LossConfig, OptimizerConfig, RunConfig
from dreamsa.escape import last_reset, rules_for
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import ScoreModel
from dreamsa.processes import Processes
from dreamsa.randomness import generator_for
from dreamsa.render.background import random_grey
from dreamsa.render.cameras import Cameras, sample_cameras
from dreamsa.render.volume import View, render
from dreamsa.scene import Scene
from dreamsa.sds import add_noise, clip_per_view, sample_timesteps, sds_loss, sds_weight

MAX_SKIPPED = 10
"""Steps in a row that may be skipped because a gradient was not finite."""


class Draw(NamedTuple):
    """Everything random about the views of one step. Drawn on the CPU and for all processes' views, so that neither the device nor the number
    of processes matters."""

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
    """Numbers of one step. The loss's own value means nothing in score distillation; these do."""

    step: int
    phase: str
    grad_norm: float
    """|g|, g the gradient in the latents."""
    grad_dot_latents: float
    """<g, z> / b; its sign tells ascent from descent."""
    opacity: float
    lr: float
    seconds: float
    skipped: bool


@dataclass
class Training:
    """A run in memory: what `sds_step` changes. Time is `step`; all else that matters is in the parts."""

    config: RunConfig
    scene: Scene
    optimizer: torch.optim.Optimizer
    annealer: Annealer
    step: int = 0
    skipped_in_a_row: int = 0
    skipped: int = 0
    watch: Watch | None = None
    """What the escape `auto` has found so far; None for any other run."""

    @property
    def clock(self) -> tuple[int, int]:
        """Where the run is in its schedules (noise levels, rate, regularisers), and how long those are: what was given up is no part of them."""
        began = self.watch.began if self.watch is not None else 0
        return self.step - began, self.config.steps - began

    def save(self, folder: Path) -> None:
        """Write a checkpoint; see `dreamsa.checkpoint`."""
        tensors, optimizer = checkpoint.pack_optimizer(self.optimizer)
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "annealer": self.annealer.state_dict(),
            "optimizer": optimizer,
        }
        groups = {"scene": self.scene.tensors(), "training": tensors}
        if self.watch is not None:
            groups["parent"], state["watch"] = self.watch.parent, self.watch.state()
        checkpoint.save(folder, groups, state)

    def load(self, folder: Path) -> None:
        """Take up a checkpoint exactly."""
        tensors, state = checkpoint.load(folder)
        self.scene.restore(tensors["scene"])
        checkpoint.unpack_optimizer(self.optimizer, tensors["training"], state["optimizer"])
        self.annealer.load_state_dict(state["annealer"])
        self.step, self.skipped = state["step"], state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        if self.watch is not None:
            self.watch.restore(tensors["parent"], state["watch"])


def new_optimizer(scene: Scene, config: OptimizerConfig) -> torch.optim.Adam:
    """Adam as in Instant-NGP and threestudio: betas (0.9, 0.99), eps 1e-15; one named group per kind of parameter."""
    groups = scene.groups(config.lr, config.mlp_lr, config.background_lr)
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def new_training(config: RunConfig, device: torch.device | str = "cpu") -> Training:
    """A run at its very beginning."""
    scene = Scene(config.field, config.render, config.seed, device)
    optimizer = new_optimizer(scene, config.optimizer)
    watched = watched_steps(config)
    watch = Watch(watched, config.edit.eta) if config.edit is not None and watched else None
    return Training(config, scene, optimizer, Annealer(optimizer, rules_for(config)), watch=watch)


def rate_factor(config: RunConfig, step: int, began: int = 0) -> float:
    """Factor on the learning rate: a warm-up after moments were reset, as Adam's first steps would all be of full length, and a cosine down
    to `decay` at the end of the run."""
    start, warmup, decay = began or last_reset(config, step), config.optimizer.warmup, config.optimizer.decay
    rising = 1.0 if start is None or not warmup else min((step - start + 1) / warmup, 1.0)
    return rising * (decay + (1 - decay) * 0.5 * (1 + cos(pi * (step - began) / (config.steps - began))))


def draw_views(config: RunConfig, step: int, timesteps: int, began: int = 0) -> Draw:
    """What is drawn for the views of a step; schedules count from step `began`."""
    rng = generator_for(config.seed, step, "views")
    b, size = config.camera.batch, config.camera.resolution
    cameras = sample_cameras(config.camera, rng)
    light = cameras.pose[:, :, 3] + torch.randn(b, 3, generator=rng)
    return Draw(
        cameras,
        torch.rand(b, size, size, generator=rng),
        random_grey(b, rng),
        torch.nn.functional.normalize(light, dim=-1),
        sample_timesteps(config.sds, step - began, config.steps - began, b, rng, timesteps),
    )


def regularizers(view: View, config: LossConfig, progress: float) -> Float[Tensor, ""]:
    """Sum of the geometric regularisers, each a mean over rays (DreamFusion, app. A.2; stable-dreamfusion for the entropy)."""
    opacity = view.opacity.clamp(1e-3, 1 - 1e-3)
    sparse = (view.opacity.square() + 0.01).sqrt().mean()
    entropy = torch.nn.functional.binary_cross_entropy(opacity, opacity)
    return config.opacity * sparse + config.entropy * progress * entropy + config.orientation * view.orientation


def objective(phase: str, score: Float[Tensor, ""], view: View, config: LossConfig, progress: float) -> Float[Tensor, ""]:
    """What the coming step's gradient is of, from the score-distillation loss and the view.

    The annealer negates whole gradients to ascend. Only score distillation may be ascended, so while it is, the regularisers are given the
    opposite sign beforehand: they always descend. In the control "ascend regularizers" opacity is ascended in its place; its
    weight does not matter there, for Adam cancels it. (The zero keeps a step whose guidance is not finite recognisable.)
    """
    if phase == "ascend":
        return score - regularizers(view, config, progress)
    if phase == "ascend regularizers":
        return 0 * score + regularizers(view, LossConfig(opacity=1.0), progress)
    return score + regularizers(view, config, progress)


def displacement(optimizer: torch.optim.Optimizer, start: Mapping[Tensor, Tensor]) -> dict[str, float]:
    """How far each named group is from where its parameters were, `start`: a Euclidean norm."""
    groups = optimizer.param_groups
    return {g["name"]: float(torch.stack([(p.detach() - start[p]).norm() for p in g["params"]]).norm()) for g in groups}


def sds_step(training: Training, score: ScoreModel, prompt: ViewPrompt, processes: Processes = Processes()) -> StepResult:
    """One update of the scene: look at it, noise it, ask the score model, step."""
    started, config, scene, step = time.monotonic(), training.config, training.scene, training.step
    moved = training.watch is not None and training.watch.turn(training, score, prompt)
    at, length = training.clock
    training.annealer.begin()
    anew = step == 0 or moved or training.annealer.edge
    if anew or step % config.render.occupancy_every == 0:
        scene.refresh(config.seed, step, full=anew)
    ours = processes.share(config.camera.batch, "camera.batch")
    drawn = draw_views(config, step, len(score.alpha_bar), step - at).part(ours)
    draw = drawn.to(score.alpha_bar.device)
    behind = scene.background(draw.cameras, config.camera.resolution, draw.background)
    view = render(
        scene.field.query,
        scene.occupancy,
        draw.cameras,
        config.camera.resolution,
        config.render,
        behind,
        draw.jitter,
        draw.light,
        orientation=config.loss.orientation > 0,
    )
    latents = score.encode(view.rgb)  # differentiable
    alpha_bar = score.alpha_bar[draw.timesteps]
    noise = torch.randn(config.camera.batch, *latents.shape[1:], generator=generator_for(config.seed, step, "noise"))[ours].to(latents)
    with torch.no_grad():
        condition = prompt(drawn.cameras.azimuth_deg, drawn.cameras.elevation_deg)
        noisy = add_noise(latents, noise, alpha_bar)
        predicted = score.predict_noise(noisy, draw.timesteps, condition, config.sds.guidance_scale)
        grad = sds_weight(alpha_bar).view(-1, 1, 1, 1) * (predicted - noise)  # DreamFusion, eq. 3
        grad = clip_per_view(grad, config.sds.max_grad_norm)
    phase = training.annealer.phase
    loss = objective(phase, sds_loss(latents, grad), view, config.loss, at / length)
    training.optimizer.zero_grad()
    (loss / processes.count).backward()
    gradients = [p.grad for p in scene.parameters() if p.grad is not None]
    processes.sum_(gradients)
    finite = bool(torch.nn.utils.get_total_norm(gradients, inf).isfinite())
    rates = [group["lr"] for group in training.optimizer.param_groups]
    factor = rate_factor(config, step, step - at)
    if finite:
        for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        training.optimizer.step()  # the annealer's rules act inside
        for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    training.step += 1
    training.skipped += not finite
    training.skipped_in_a_row = 0 if finite else training.skipped_in_a_row + 1
    numbers = torch.stack([grad.norm(), sds_loss(latents.detach(), grad), view.opacity.detach().mean()]).tolist()  # one wait for the three
    return StepResult(
        step=step,
        phase=phase,
        grad_norm=numbers[0],
        grad_dot_latents=numbers[1],
        opacity=numbers[2],
        lr=rates[0] * factor,
        seconds=time.monotonic() - started,
        skipped=not finite,
    )
