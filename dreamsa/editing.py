"""An edit as numbers, turned into annealing rules and the schedules that depend on them.

The numbers are those of `EditConfig`: eta, ascent_steps, scale and moments; named escapes are rows
of `choices.ESCAPES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import cos, pi
from typing import Any

import torch
from torch import Tensor

from dreamsa.annealing import Event, ResetMoments, Rule, ScaleRate, Window, interpolate
from dreamsa.config import FreeConfig, RunConfig, same_prompt
from dreamsa.keeping import region_distance, weight_at
from dreamsa.rendering.occupancy import cell_centres
from dreamsa.scene import Scene, fresh_parameters

MATTER_CELLS = 64
"""Per side of the grid on which a region is checked."""


def rules_for(config: RunConfig) -> list[Rule]:
    """The rules of an edit; none for a generation.

    Before the first step the scene moves by the fraction `eta` towards a random scene
    (Perturb-and-Revise, arXiv:2412.05279). The first `ascent_steps` steps ascend at `scale` times
    the learning rate (thesis, eq. 9); moments are reset at both edges of the ascent. Only a plain
    edit may keep the moments.
    """
    edit = config.edit
    if edit is None:
        return []
    reset = (ResetMoments(),) if edit.moments == "reset" else ()
    begin: tuple[Event, ...] = (
        *((interpolate(edit.eta, random_scene(config)),) if edit.eta else ()),
        *reset,
    )
    if edit.ascent_steps:
        return [ascent_rule(config, begin, phase="ascend")]
    return [Rule(Window(0, 1), on_open=begin, phase="descend")] if begin else []


def ascent_rule(config: RunConfig, begin: tuple[Event, ...], phase: str) -> Rule:
    """Steps at `scale` times the learning rate, with reset moments after them. The sign is the
    objective's."""
    assert config.edit is not None
    window, rate = Window(0, config.edit.ascent_steps), ScaleRate(config.edit.scale)
    return Rule(window, rate, on_open=begin, on_close=(ResetMoments(),), phase=phase)


def random_scene(config: RunConfig) -> Callable[[int], Sequence[Tensor]]:
    """Parameters of the random scene that an edit moves towards, as an event's function of the
    step."""
    return lambda _: fresh_parameters(config.field, config.render, config.seed + 1)


def ascent_steps(config: RunConfig) -> int:
    """Number of steps at the start that ascend: score distillation or, in a control, a
    regularizer."""
    edit = config.edit
    if edit is None or (edit.control is not None and edit.control.kind != "regularizers"):
        return 0
    return edit.ascent_steps


def distillation_sign(config: RunConfig, step: int) -> int:
    """-1 in steps that ascend, else 1: the sign of the distillation gradient in the latents."""
    controlled = config.edit is not None and config.edit.control is not None
    return -1 if step < ascent_steps(config) and not controlled else 1


def learning_rate_factor(config: RunConfig) -> Callable[[int], float]:
    """Factor on the learning rate at each step: a linear warm-up after every reset of the moments,
    and a cosine.

    The warm-up is needed because Adam's first steps would all have full length.
    """
    warmup, decay = config.optimizer.warmup, config.optimizer.decay
    kept = config.edit is not None and config.edit.moments == "keep"
    ascent = ascent_steps(config)

    def factor(step: int) -> float:
        since = step - ascent if step >= ascent else step
        rising = 1.0 if kept or not warmup else min((since + 1) / warmup, 1.0)
        return rising * (decay + (1 - decay) * 0.5 * (1 + cos(pi * step / config.steps)))

    return factor


def check_fits(config: RunConfig, parent: RunConfig) -> None:
    """Check that an edit has its parent's field and, for an automatic region, another prompt.

    Raises:
        ValueError: A setting differs, or the prompt does not.
    """
    free = config.edit and config.edit.free
    if free and free.auto and same_prompt(config.prompt, parent.prompt):
        raise ValueError(
            "The region auto is where two prompts differ, but the new prompt is the parent's: "
            f"{config.prompt!r}. Name a region, or leave --region out."
        )

    def shape(one: RunConfig) -> dict[str, Any]:
        field = {**vars(replace(one.field, backend="auto", sharpness=1.0))}
        return {f"field.{name}": value for name, value in field.items()} | (
            {"render.occupancy": one.render.occupancy} if config.layers else {}
        )

    wanted, found = shape(parent), shape(config)
    for name, value in found.items():
        if value != wanted[name]:
            raise ValueError(
                f"An edit starts from its parent's field, whose {name} is {wanted[name]}, not "
                f"{value}. Leave {name} as it is, or generate a new object."
            )


@torch.no_grad()
def check_free(free: FreeConfig, parent: Scene) -> None:
    """Check that an edit leaves something of its parent's object free.

    Raises:
        ValueError: The region lies outside of the scene or of the object, or nothing is free.
    """
    if free.auto or not free.has_region:
        return
    radius, device = parent.occupancy.radius, parent.occupancy.density.device
    points = cell_centres(MATTER_CELLS, radius, device)
    reached = weight_at(region_distance(free, points), free.grow) > 0
    if not reached.any():
        raise ValueError(
            f"{free.words} leaves nothing free: the scene is the cube from {-radius:g} to "
            f"{radius:g} on each axis. Move or enlarge the region."
            if not free.outside
            else f"{free.words} leaves nothing free: the region fills the scene. Make it smaller."
        )
    matter = parent.query(points).density > parent.occupancy.threshold
    if matter.any() and not (matter & reached).any():
        low, high = points[matter].amin(0).tolist(), points[matter].amax(0).tolist()
        box = ",".join(f"{value:.2f}" for value in (*low, *high))
        raise ValueError(
            f"{free.words} holds nothing of the object, which lies in box:{box}. "
            "Move or enlarge the region, or give it a margin with --grow."
        )
