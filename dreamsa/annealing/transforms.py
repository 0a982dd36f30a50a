"""What happens inside a step: transforms of gradients and learning rates, undone as soon as the step is over.

A transform is a function of the parameter groups it is given. It may change gradients in place and return replacement values for group
settings ("lr", "weight_decay"); the annealer puts the old values back after the step, so that a scheduler never sees them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Group = dict[str, Any]
"""One of `optimizer.param_groups`."""


def gradients(groups: Sequence[Group]) -> list[Tensor]:
    """The gradients of all parameters that have one."""
    return [p.grad for group in groups for p in group["params"] if p.grad is not None]


class StepTransform(Protocol):
    """Called right before `optimizer.step` in every step of its rule's window."""

    def __call__(self, groups: Sequence[Group]) -> list[dict[str, float]]:
        """Change gradients in place; return, per group, settings that hold for this step only."""
        ...


@dataclass(frozen=True)
class GradientAscent:
    """Walk uphill: negate the gradient and scale each group's current learning rate by `scale` (the thesis' S, eq. 9).

    The rate is scaled and not the gradient, because Adam cancels any factor on the gradient. The gradient is negated
    and not the rate, because a negative rate would turn weight decay into growth.
    """

    scale: float = 0.01
    decay_weights: bool = True
    """Whether weight decay goes on shrinking while the loss is climbed (the paper's words); False as in the authors' code."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"The ascent scale S must lie in [0, 100], got {self.scale}.")

    def __call__(self, groups: Sequence[Group]) -> list[dict[str, float]]:
        grads = gradients(groups)
        if grads:
            torch._foreach_neg_(grads)
        kept = {} if self.decay_weights else {"weight_decay": 0.0}
        return [{"lr": group["lr"] * self.scale, **kept} for group in groups]


@dataclass(frozen=True)
class Freeze:
    """Hold parameters where they are: no learning rate and no weight decay. Moments still follow the gradient."""

    def __call__(self, groups: Sequence[Group]) -> list[dict[str, float]]:
        return [{"lr": 0.0, "weight_decay": 0.0} for _ in groups]
