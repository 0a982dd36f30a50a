"""Ways out of the local minimum that a finished scene sits in, as annealing rules."""

from collections.abc import Sequence

from torch import Tensor

from dreamsa.annealing import (
    Displace,
    Event,
    GradientAscent,
    Interpolate,
    Move,
    ResetMoments,
    Rule,
    StepTransform,
    Window,
    direction_to,
    random_direction,
)
from dreamsa.auto import watched_steps
from dreamsa.config import ASCENDING, EditConfig, RunConfig
from dreamsa.scene import fresh_parameters


def rules_for(config: RunConfig) -> list[Rule]:
    """The rules of a run: none for a generation, one for an edit.

    anneal ascends for `ascent_steps` at `scale` times the learning rate, moments forgotten at both edges (thesis, eq. 9);
    regularizers does the same with the opacity regulariser in place of score distillation (see `train.objective`). noise, interpolate
    and fresh move once, then descend. auto resumes, until `auto.Watch` decides and moves; a repair it interpolates at once. All but a plain
    edit that keeps its moments start with none.
    """
    edit = config.edit
    if edit is None:
        return []
    reset = (ResetMoments(),)
    if watched_steps(config):
        return [Rule(Window(0, watched_steps(config)), StepTransform(), on_open=reset, phase="watch")]
    if edit.escape in ASCENDING and edit.ascent_steps:
        phase = "ascend" if edit.escape == "anneal" else "ascend regularizers"
        return [Rule(Window(0, edit.ascent_steps), GradientAscent(edit.scale), on_open=reset, on_close=reset, phase=phase)]
    events = (*_moves(edit, config), *(reset if edit.moments == "reset" else ()))
    return [Rule(Window(0, 1), on_open=events, phase="descend")] if events else []


def _moves(edit: EditConfig, config: RunConfig) -> tuple[Event, ...]:
    """How the scene is moved before the first step. Without a displacement of its own, noise moves by the most that Adam could have
    moved in an ascent of `ascent_steps` at `scale`, and interpolate by the share `eta` of the way to another random scene."""

    def fresh(_: int) -> Sequence[Tensor]:
        return fresh_parameters(config.field, config.render, config.seed + 1)

    if edit.escape == "fresh":
        return (Interpolate(1.0, fresh),)
    if edit.escape == "noise":
        far = edit.displacement
        return (
            (Displace(edit.scale * config.optimizer.lr * edit.ascent_steps, config.seed),)
            if far is None
            else (Move(far, random_direction(config.seed)),)
        )
    if edit.escape in ("interpolate", "auto"):  # auto: a repair
        return (Interpolate(edit.eta, fresh),) if edit.displacement is None else (Move(edit.displacement, direction_to(fresh)),)
    return ()


def last_reset(config: RunConfig, step: int) -> int | None:
    """The step at which moments were last forgotten, for the learning rate's warm-up; None if they were kept."""
    edit = config.edit
    if edit is None:
        return 0
    if edit.escape in ASCENDING and edit.ascent_steps:
        return edit.ascent_steps if step >= edit.ascent_steps else 0
    return None if edit.moments == "keep" else 0
