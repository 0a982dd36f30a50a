"""The escape `auto`: resume for a while, ask the score model whether the scene has come over from the parent's prompt to the new one, and if it has not, go
back to the parent and interpolate towards a random scene.

A parent's shape can be a trap on the way to another object, and is the very thing to keep when only a colour changes. Which of the two an edit is cannot
be told from the parent, but from its first steps.
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
ENOUGH = 0.4
"""How far over to the new prompt a scene must have come to be on its way: -1 is where the parent was, 0 where the model is undecided. Chosen on 44 edits of the
toybox, of which 50 steps of resuming had brought all to another object to less but for a mug on its way to a teapot, which plain resuming gets to, and all to another colour
to more but for a car."""
AZIMUTHS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
ELEVATION_DEG = 15.0
LEVELS = (0.6, 0.8)
"""Noise levels, as shares of the schedule, at which views are asked about: shapes and coarse colours are decided there."""


def watched_steps(config: RunConfig) -> int:
    """After how many steps it is decided; 0 for any run that does not decide, and for a repair, which is decided at once."""
    edit = config.edit
    return config.steps // SHARE if edit is not None and edit.escape == "auto" and not _is_repair(config) else 0


def _is_repair(config: RunConfig) -> bool:
    return config.edit is not None and config.edit.parent_prompt.casefold() == config.prompt.casefold()


@torch.no_grad()
def preference(scene: Scene, camera: CameraConfig, score: ScoreModel, new: ViewPrompt, old: ViewPrompt) -> float:
    """How much better the score model denoises fixed views of a scene when it is told the new prompt than when it is told the old one.

    The mean over views, noise levels and latents of (e_old - e)^2 - (e_new - e)^2, with the same noise e whatever the scene: what a diffusion
    model tells two classes apart by (arXiv:2303.16203, eq. 5), in units of the noise's variance.
    """
    cameras = orbit(list(AZIMUTHS), ELEVATION_DEG, **viewing_camera(camera))
    total = 0.0
    for i in range(len(cameras)):
        view = cameras[i : i + 1]
        latents = score.encode(scene.look(view, camera.resolution).rgb)
        conditions = [prompt(view.azimuth_deg, view.elevation_deg) for prompt in (old, new)]
        for level in LEVELS:
            timestep = torch.full((1,), round(level * (len(score.alpha_bar) - 1)), device=latents.device)
            noise = torch.randn(latents.shape, generator=generator_for(0, i, f"held out {level}")).to(latents)
            noisy = add_noise(latents, noise, score.alpha_bar[timestep])
            told_old, told_new = ((score.predict_noise(noisy, timestep, c, 1.0) - noise).square().mean() for c in conditions)
            total += float(told_old - told_new)
    return total / (len(cameras) * len(LEVELS))


@dataclass
class Watch:
    """Where `auto` is: when it decides, what it has found, and the parent that it may go back to."""

    steps: int
    """After how many steps it is decided."""
    eta: float
    """How far towards a random scene, if it comes to that."""
    at_first: float | None = None
    """The preference for the new prompt before the first step: below 0 where the parent is what its prompt says."""
    found: float | None = None
    """The preference when it was decided, in units of that of the parent for its own prompt."""
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
        if self.steps == 0:
            return f"interpolated by {self.eta:g} at once: the prompt is the parent's own, so what it lacks cannot be seen from the words"
        did = "went on resuming" if self.resumes else f"went back to the parent and interpolated by {self.eta:g}"
        why = "on its way" if self.resumes else "not on its way"
        return (
            f"{did}: after {self.steps} steps the scene was {why}; between the old prompt (-1: as the parent) and the new one (+1: as "
            f"surely) the model saw its views at {self.found:+.2f}, and {ENOUGH:+g} is enough"
        )

    def turn(self, training: "Training", score: ScoreModel, prompt: ViewPrompt) -> None:
        """Before a step: keep the parent at the first; decide when it is time."""
        scene, step = training.scene, training.step
        if step == 0 and self.steps > 0:
            self.parent = {name: value.detach().clone() for name, value in scene.tensors().items()}
            self.at_first = self._preference(training, score, prompt)
        if step != self.steps:
            return
        self.found = self._progress(training, score, prompt)
        if not self.resumes:
            if self.parent:
                scene.restore(self.parent)
            self._interpolate(training)
        self.parent = {}

    def _progress(self, training: "Training", score: ScoreModel, prompt: ViewPrompt) -> float:
        """-1 at the parent, which prefers its own prompt; 1 where the scene prefers the new one as surely. A repair has made none."""
        if self.at_first is None:
            return -1.0
        if self.at_first >= 0:  # the parent is what the new prompt says already
            return 1.0
        return self._preference(training, score, prompt) / -self.at_first

    def _preference(self, training: "Training", score: ScoreModel, prompt: ViewPrompt) -> float:
        config = training.config
        assert config.edit is not None
        old = ViewPrompt(score, config.edit.parent_prompt, config.negative_prompt, config.views)
        return preference(training.scene, config.camera, score, prompt, old)

    def _interpolate(self, training: "Training") -> None:
        config, optimizer = training.config, training.optimizer
        events = (Interpolate(self.eta, lambda _: fresh_parameters(config.field, config.render, config.seed + 1)), ResetMoments())
        for event in events:
            event(optimizer, optimizer.param_groups, training.step)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; `parent` goes there too."""
        return {"steps": self.steps, "at_first": self.at_first, "found": self.found}

    def restore(self, parent: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `state`. When it is or was decided stays, though a run be made longer."""
        self.parent, self.steps, self.at_first, self.found = dict(parent), state["steps"], state["at_first"], state["found"]
