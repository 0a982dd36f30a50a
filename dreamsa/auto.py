"""The escape `auto`: resume for a while, then interpolate towards a random scene and go on from there for as long, and keep what the score model
says has come nearer to the prompt.

A parent's shape can be a trap on the way to another object, and is the very thing to keep when only a colour changes. Which of the two an edit is cannot
be told from its prompt, but from its first steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamsa import checkpoint
from dreamsa.config import RunConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import ScoreModel
from dreamsa.randomness import generator_for
from dreamsa.render.cameras import CameraConfig, orbit
from dreamsa.scene import Scene
from dreamsa.sds import add_noise

if TYPE_CHECKING:
    from dreamsa.train import Training

SHARE = 6
"""Each of the two is tried for one part in so many of the run's steps."""
RESUMED, REVISED = "resuming", "interpolating"
AZIMUTHS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
ELEVATION_DEG = 15.0
LEVELS = (0.5, 0.6, 0.7)
"""Noise levels, as shares of the schedule, at which views are asked about: what is coarse is decided there."""
MARGIN = 0.002
"""By how much resuming has to be ahead to be gone on with: interpolating begins further back and gains longer."""


def tried_steps(config: RunConfig) -> int:
    """How long each of the two is tried; 0 for any other run."""
    return config.steps // SHARE if config.edit is not None and config.edit.escape == "auto" else 0


def clock(config: RunConfig, step: int) -> tuple[int, int]:
    """Where a step is in the run's schedules (noise levels, rate, regularisers), and how long those are: the steps spent on the way that is not taken are no
    part of them."""
    tried = tried_steps(config)
    return step if step < tried else step - tried, config.steps - tried


@torch.no_grad()
def advantage(scene: Scene, camera: CameraConfig, score: ScoreModel, prompt: ViewPrompt) -> float:
    """How much better the score model denoises fixed views of a scene when it is told the prompt than when it is not.

    The mean over views, noise levels and latents of (e_none - e)^2 - (e_prompt - e)^2, with the same noise e whatever the scene: what a diffusion
    model classifies images by (arXiv:2303.16203, eq. 5). Higher is better.
    """
    cameras = orbit(list(AZIMUTHS), ELEVATION_DEG, (camera.distance[0] + camera.distance[1]) / 2, (camera.focal[0] + camera.focal[1]) / 2)
    cameras = cameras.to(score.alpha_bar.device)
    total = 0.0
    for i in range(len(cameras)):
        view = cameras[i : i + 1]
        latents = score.encode(scene.look(view, camera.resolution).rgb)
        condition = prompt(view.azimuth_deg, view.elevation_deg)
        for level in LEVELS:
            timestep = torch.full((1,), round(level * (len(score.alpha_bar) - 1)), device=latents.device)
            rng = generator_for(0, i, f"held out {level}", latents.device)
            noise = torch.randn(latents.shape, generator=rng, device=latents.device)
            noisy = add_noise(latents, noise, score.alpha_bar[timestep])
            with_text, without = ((score.predict_noise(noisy, timestep, condition, scale) - noise).square().mean() for scale in (1.0, 0.0))
            total += float(without - with_text)
    return total / (len(cameras) * len(LEVELS))


@dataclass
class Race:
    """Where `auto` is: what it has found, and the scene that it may go back to."""

    steps: int
    """How long each of the two is tried."""
    found: dict[str, float] = field(default_factory=dict)
    """Advantage of each at the end of its trial."""
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """While the first is tried, the parent's scene; while the second is, the resumed one and its optimizer's moments."""
    kept_state: dict[str, Any] = field(default_factory=dict)

    @property
    def decision(self) -> str | None:
        """What was decided and why, in a sentence; None while it is not."""
        if REVISED not in self.found:
            return None
        said = [f"{1000 * self.found[way]:.1f} after {way}" for way in (RESUMED, REVISED)]
        return (
            f"went on with {RESUMED if self.resumes else REVISED}: after {self.steps} steps each, being told the prompt helps the model to denoise the views "
            f"by {' and '.join(said)} (thousandths of the noise's variance; {RESUMED} has to be ahead by {1000 * MARGIN:g})"
        )

    @property
    def resumes(self) -> bool:
        """Whether resuming is gone on with."""
        return self.found[RESUMED] >= self.found[REVISED] + MARGIN

    def turn(self, training: "Training", score: ScoreModel, prompt: ViewPrompt) -> None:
        """Before a step: at the end of the first trial, put it aside and take up the parent again; at the end of the second, choose."""
        scene, optimizer, camera = training.scene, training.optimizer, training.config.camera
        if training.step == 0:
            self.kept = {"scene": _copies(scene.tensors())}
        elif training.step == self.steps:
            self.found[RESUMED] = advantage(scene, camera, score, prompt)
            parent, resumed = self.kept["scene"], _copies(scene.tensors())
            moments, self.kept_state = checkpoint.pack_optimizer(optimizer)
            self.kept = {"scene": resumed, "moments": _copies(moments)}
            scene.restore(parent)
        elif training.step == 2 * self.steps:
            self.found[REVISED] = advantage(scene, camera, score, prompt)
            if self.resumes:
                scene.restore(self.kept["scene"])
                checkpoint.unpack_optimizer(optimizer, self.kept["moments"], self.kept_state)
            self.kept, self.kept_state = {}, {}

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {f"{group}:{name}": value for group, values in self.kept.items() for name, value in values.items()}

    def state(self) -> dict[str, Any]:
        return {"found": self.found, "optimizer": self.kept_state}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `tensors` and `state`."""
        self.found, self.kept_state, self.kept = state["found"], state["optimizer"], {}
        for key, value in tensors.items():
            group, _, name = key.partition(":")
            self.kept.setdefault(group, {})[name] = value


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
