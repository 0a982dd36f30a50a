"""Controls of comparisons: rules and objective of runs whose `edit.control` is set."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from dreamsa.annealing import (
    Move,
    ResetMoments,
    Rule,
    Window,
    direction_to,
    random_direction,
)
from dreamsa.config import LossConfig, RunConfig
from dreamsa.editing import ascent_rule, ascent_steps, random_scene
from dreamsa.rendering.volume import Image
from dreamsa.train import Method, objective, regularizers


def method_of(config: RunConfig) -> Method | None:
    """How to train a control; None for an ordinary run."""
    if config.edit is None or config.edit.control is None:
        return None
    reset = (ResetMoments(),)
    if ascent_steps(config):
        rule = ascent_rule(config, reset, phase="ascend regularizers")
        return Method([rule], opacity_ascent)
    return Method([Rule(Window(0, 1), on_open=(*_moves(config), *reset), phase="descend")])


def opacity_ascent(
    config: RunConfig, step: int, distillation: Float[Tensor, ""], image: Image
) -> Float[Tensor, ""]:
    """Minus the opacity regularizer in place of score distillation; then the ordinary objective.

    Adam cancels the regularizer's weight. The zero keeps non-finite guidance recognizable.
    """
    if step >= ascent_steps(config):
        return objective(config, step, distillation, image)
    return 0 * distillation - regularizers(image, LossConfig(opacity=1.0), step / config.steps)


def _moves(config: RunConfig) -> tuple[Move, ...]:
    """The displacement before the first step.

    Without norms, noise moves as far as Adam can in `ascent_steps` at `scale`.
    """
    edit = config.edit
    assert edit is not None
    assert edit.control is not None
    norms: Any = edit.control.displacement
    if edit.control.kind == "noise":
        rms = edit.scale * config.optimizer.lr * edit.ascent_steps
        return (Move(random_direction(config.seed), factor=rms, norms=norms),)
    if edit.control.kind == "interpolate":
        return (Move(direction_to(random_scene(config)), norms=norms),)
    return ()
