"""The escape `auto`: resume for a while, ask the score model whether the scene has come over from the parent's prompt to the new one, and if it has not, go
back to the parent and interpolate towards a random scene.

A parent's shape can be a trap on the way to another object, and is the very thing to keep when only a colour changes. Which of the two an edit is cannot
be told from the parent, but from its first steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamsa.annealing import Interpolate, ResetMoments
from dreamsa.config import RunConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import Condition, GuidanceFailed, ScoreModel
from dreamsa.randomness import generator_for
from dreamsa.render.cameras import CameraConfig, orbit, viewing_camera
from dreamsa.scene import Scene, fresh_parameters
from dreamsa.sds import add_noise

if TYPE_CHECKING:
    from dreamsa.train import Training

SHARE = 6
"""One part in so many of the run's steps is watched."""
ENOUGH = 0.4
"""How far over to the new prompt a scene must have come to be on its way: -1 is where the parent was, 0 where the model is undecided. Chosen on 48 edits of the
toybox: 50 steps of resuming had brought all to another colour further but for a car, and none to another object but for mugs on their way to a teapot or a house, which plain
resuming gets to."""
AZIMUTHS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
ELEVATION_DEG = 15.0
LEVELS = (0.6, 0.8)
"""Noise levels, as shares of the schedule, at which views are asked about: shapes and coarse colours are decided there."""


UNDECIDED = 0.001
"""Preferences this near to 0, or on the other side of it, say nothing of a way to go: the model sees the new prompt in the parent as well as the old one."""
REPAIR = "interpolated at once: the prompt is the parent's own, so what is wrong with the parent cannot be seen from the words"
"""What is said of a repair, which is not watched."""


def watched_steps(config: RunConfig) -> int:
    """After how many steps it is decided; 0 for any run that decides nothing."""
    return config.steps // SHARE if config.edit is not None and config.edit.escape == "auto" and not config.repairs else 0


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
        seen = [prompt(view.azimuth_deg, view.elevation_deg) for prompt in (old, new)]
        conditions = [Condition(one.positive, one.negative) for one in seen]  # bare predictions, without Perp-Neg's push
        for level in LEVELS:
            timestep = torch.full((1,), round(level * (len(score.alpha_bar) - 1)), device=latents.device)
            noise = torch.randn(latents.shape, generator=generator_for(0, i, f"held out {level}")).to(latents)
            noisy = add_noise(latents, noise, score.alpha_bar[timestep])
            told_old, told_new = ((score.predict_noise(noisy, timestep, c, 1.0) - noise).square().mean() for c in conditions)
            total += float(told_old - told_new)
    if not isfinite(total):
        raise GuidanceFailed(
            "The guidance returned values that are not finite when `auto` asked it. Try --set model.dtype=float32, or another escape."
        )
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
        if self.found is None or self.at_first is None:
            return None
        did = "went on resuming" if self.resumes else f"went back to the parent and interpolated by {self.eta:g}"
        if self.at_first > -UNDECIDED:
            return f"{did}: in the parent the model saw the new prompt as well as the old one"
        why = "on its way" if self.resumes else "not on its way"
        return (
            f"{did}: after {self.steps} steps the scene was {why}; between the old prompt (-1: as the parent) and the new one (+1: as "
            f"surely) the model saw its views at {self.found:+.2f}, and {ENOUGH:+g} is enough"
        )

    def turn(self, training: "Training", score: ScoreModel, prompt: ViewPrompt) -> bool:
        """Before a step: keep the parent at the first; decide when it is time. Whether the scene was moved."""
        scene, config, optimizer, step = training.scene, training.config, training.optimizer, training.step
        assert config.edit is not None
        if self.found is not None or step not in (0, self.steps):
            return False
        old = ViewPrompt(score, config.edit.parent_prompt, config.negative_prompt, config.views)
        seen = preference(scene, config.camera, score, prompt, old)
        if step == 0:
            self.parent = {name: value.detach().clone() for name, value in scene.tensors().items()}
            self.at_first = seen
            return False
        assert self.at_first is not None
        self.found = 1.0 if self.at_first > -UNDECIDED else seen / -self.at_first
        if not self.resumes:
            scene.restore(self.parent)
            for event in (Interpolate(self.eta, lambda _: fresh_parameters(config.field, config.render, config.seed + 1)), ResetMoments()):
                event(optimizer, optimizer.param_groups, step)
        self.parent = {}
        return not self.resumes

    def state(self) -> dict[str, Any]:
        """For a checkpoint; `parent` goes there too."""
        return {"steps": self.steps, "at_first": self.at_first, "found": self.found}

    def restore(self, parent: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `state`. When it is or was decided stays, though a run be made longer."""
        self.parent, self.steps, self.at_first, self.found = dict(parent), state["steps"], state["at_first"], state["found"]
