"""Ways out of the local minimum that a finished scene sits in, as annealing rules."""

from collections.abc import Sequence

from torch import Tensor

from dreamsa.annealing import Displace, GradientAscent, Interpolate, ResetMoments, Rule, Window
from dreamsa.config import RunConfig
from dreamsa.scene import Scene


def rules_for(config: RunConfig) -> list[Rule]:
    """The rules of a run: none for a generation, one for an edit.

    anneal ascends for `ascent_steps` at `scale` times the learning rate, moments forgotten at both edges (thesis, eq. 9);
    noise moves once by the most that Adam could have moved in that ascent, in a random direction; interpolate and fresh
    move towards another random scene. All but a plain edit that keeps its moments start with none.
    """
    edit = config.edit
    if edit is None:
        return []
    reset = (ResetMoments(),)
    start = Window(0, 1)
    if edit.escape == "anneal" and edit.ascent_steps:
        ascent = GradientAscent(edit.scale)
        return [Rule(Window(0, edit.ascent_steps), ascent, on_open=reset, on_close=reset, phase="ascend")]
    if edit.escape == "noise":
        rms = edit.scale * config.optimizer.lr * edit.ascent_steps
        return [Rule(start, on_open=(Displace(rms, config.seed), *reset), phase="descend")]
    if edit.escape in ("interpolate", "fresh"):
        eta = 1.0 if edit.escape == "fresh" else edit.eta
        return [Rule(start, on_open=(Interpolate(eta, lambda _: _fresh_parameters(config)), *reset), phase="descend")]
    return [Rule(start, on_open=reset, phase="descend")] if edit.moments == "reset" else []


def last_reset(config: RunConfig, step: int) -> int | None:
    """The step at which moments were last forgotten, for the learning rate's warm-up; None if they were kept."""
    edit = config.edit
    if edit is None:
        return 0
    if edit.escape == "anneal" and edit.ascent_steps:
        return edit.ascent_steps if step >= edit.ascent_steps else 0
    return None if edit.escape == "plain" and edit.moments == "keep" else 0


def _fresh_parameters(config: RunConfig) -> Sequence[Tensor]:
    """The parameters of another random scene, in the optimizer's order."""
    scene = Scene(config.field, config.render, config.seed + 1)
    return [p.detach() for group in scene.groups(1.0, 1.0, 1.0) for p in group["params"]]
