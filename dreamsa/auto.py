"""The escape `auto`: resume for a while, ask the score model whether the scene is on its way to the new prompt, and if it is not, go back to the parent and
interpolate towards a random scene.

A parent's shape can be a trap on the way to another object, and is the very thing to keep when only a colour changes. Which of the two an edit is cannot
be told from its prompt, but from its first steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamsa.annealing import Interpolate, ResetMoments
from dreamsa.config import RunConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import ScoreModel
from dreamsa.randomness import generator_for
from dreamsa.render.cameras import CameraConfig, orbit, viewing_camera
from dreamsa.scene import Scene, fresh_parameters
from dreamsa.sds import add_noise

if TYPE_CHECKING:
    from dreamsa.train import Training

SHARE = 6
"""One part in so many of the run's steps is watched."""
ENOUGH = -0.002
"""The advantage from which on a scene is on its way. Chosen on sixteen edits of the toybox, whose colours had -0.001 and more after 50 steps but for one, and whose
other objects -0.003 and less."""
AZIMUTHS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
ELEVATION_DEG = 15.0
LEVELS = (0.4, 0.6)
"""Noise levels, as shares of the schedule, at which views are asked about: shapes and coarse colours are decided there."""


def watched_steps(config: RunConfig) -> int:
    """After how many steps it is decided; 0 for any run that does not decide."""
    return config.steps // SHARE if config.edit is not None and config.edit.escape == "auto" else 0


@torch.no_grad()
def advantage(scene: Scene, camera: CameraConfig, score: ScoreModel, prompt: ViewPrompt) -> float:
    """How much better the score model denoises fixed views of a scene when it is told the prompt than when it is not.

    The mean over views, noise levels and latents of (e_none - e)^2 - (e_prompt - e)^2, with the same noise e whatever the scene: what a diffusion
    model classifies images by (arXiv:2303.16203, eq. 5), in units of the noise's variance. Higher is better; of finished objects with their own
    prompts it is a little above 0.
    """
    cameras = orbit(list(AZIMUTHS), ELEVATION_DEG, **viewing_camera(camera))
    total = 0.0
    for i in range(len(cameras)):
        view = cameras[i : i + 1]
        latents = score.encode(scene.look(view, camera.resolution).rgb)
        condition = prompt(view.azimuth_deg, view.elevation_deg)
        for level in LEVELS:
            timestep = torch.full((1,), round(level * (len(score.alpha_bar) - 1)), device=latents.device)
            noise = torch.randn(latents.shape, generator=generator_for(0, i, f"held out {level}")).to(latents)
            noisy = add_noise(latents, noise, score.alpha_bar[timestep])
            with_text, without = ((score.predict_noise(noisy, timestep, condition, scale) - noise).square().mean() for scale in (1.0, 0.0))
            total += float(without - with_text)
    return total / (len(cameras) * len(LEVELS))


@dataclass
class Watch:
    """Where `auto` is: when it decides, what it has found, and the parent that it may go back to."""

    steps: int
    """After how many steps it is decided."""
    eta: float
    """How far towards a random scene, if it comes to that."""
    found: float | None = None
    """The advantage that was found."""
    parent: dict[str, Tensor] = field(default_factory=dict)
    """The parent's scene, until it is decided."""

    @property
    def resumes(self) -> bool | None:
        """Whether the scene is on its way; None while it is not decided."""
        return None if self.found is None else self.found >= ENOUGH

    @property
    def began(self) -> int:
        """The step at which what goes on now began; schedules count from there."""
        return self.steps if self.resumes is False else 0

    @property
    def decision(self) -> str | None:
        """What was decided and why, in a sentence; None while it is not."""
        if self.found is None:
            return None
        did = "went on resuming" if self.resumes else f"went back to the parent and interpolated by {self.eta:g}"
        why = "on its way" if self.resumes else "not on its way"
        return (
            f"{did}: after {self.steps} steps the scene was {why}; being told the prompt made the model better at denoising its views by "
            f"{1000 * self.found:.1f} thousandths of the noise's variance, and {1000 * ENOUGH:g} are enough"
        )

    def turn(self, training: "Training", score: ScoreModel, prompt: ViewPrompt) -> None:
        """Before a step: keep the parent at the first; decide when it is time."""
        scene, optimizer, config = training.scene, training.optimizer, training.config
        if training.step == 0:
            self.parent = {name: value.detach().clone() for name, value in scene.tensors().items()}
        elif training.step == self.steps:
            self.found = advantage(scene, config.camera, score, prompt)
            if not self.resumes:
                scene.restore(self.parent)
                for event in (
                    Interpolate(self.eta, lambda _: fresh_parameters(config.field, config.render, config.seed + 1)),
                    ResetMoments(),
                ):
                    event(optimizer, optimizer.param_groups, training.step)
            self.parent = {}

    def state(self) -> dict[str, Any]:
        """For a checkpoint; `parent` goes there too."""
        return {"steps": self.steps, "found": self.found}

    def restore(self, parent: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `state`. When it is or was decided stays, though a run be made longer."""
        self.parent, self.steps, self.found = dict(parent), state["steps"], state["found"]
