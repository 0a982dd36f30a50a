"""Step transforms: changes of gradients and of optimizer settings that hold for one step.

`settings` returns values ("lr", "weight_decay", "momentum") for this step; the annealer restores
the old ones afterwards, so that a scheduler never sees them. `apply_` changes gradients in place.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import log, sqrt
from typing import Any

import torch
from torch import Tensor

from dreamsa.annealing.memory import Masks, Snapshots
from dreamsa.randomness import generator_for, seed_for

Group = dict[str, Any]
"""One of `optimizer.param_groups`."""

Schedule = Callable[[int], float]
"""A pure function of the optimizer step."""


@dataclass(frozen=True)
class StepContext:
    """The coming step, as a rule sees it. Losses stay on their device."""

    groups: Sequence[Group]
    step: int
    lr: float = 0.0
    """The learning rate of the optimizer's first group, after schedules (rules without a phase),
    divided by its "lr_scale" if it has one."""
    loss: Tensor | None = None
    """Observed in this step."""
    previous: Tensor | None = None
    """Observed in the previous step."""
    lowest: Tensor | None = None
    """Running minimum of the observed losses, including this step's."""
    grad_scale: Tensor | float = 1.0
    """Factor on the gradients (fused optimizers under GradScaler), which added terms need too."""

    @property
    def parameters(self) -> list[Tensor]:
        """Parameters that have a gradient."""
        return [p for group in self.groups for p in group["params"] if p.grad is not None]

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def excess(self, c: float | None = None) -> Tensor:
        """(U - c)+, the loss above c, by default its running minimum.

        Raises:
            RuntimeError: No loss was observed.
        """
        if self.loss is None or self.lowest is None:
            raise RuntimeError(
                "This rule needs every loss: call annealer.observe(loss) before optimizer.step()."
            )
        return (self.loss - (self.lowest if c is None else c)).clamp(min=0)


class StepTransform:
    """Applies in every step of its rule's window. Override one or both methods."""

    def settings(self, group: Group, at: StepContext) -> dict[str, float]:
        """Settings of one group for this step."""
        return {}

    def apply_(self, at: StepContext) -> None:
        """Change the gradients in place; with a closure, after each of its calls."""


@dataclass(frozen=True)
class ScaleRate(StepTransform):
    """Scale each group's learning rate by a constant or a schedule."""

    factor: float | Schedule

    def settings(self, group: Group, at: StepContext) -> dict[str, float]:
        return {"lr": group["lr"] * _value(self.factor, at)}


@dataclass(frozen=True)
class GradientAscent(StepTransform):
    """Ascend: negate the gradient, scale the learning rate by S (thesis, eq. 9; SEAL, eq. 3).

    Adam cancels any factor on the gradient, so the rate is scaled. A negative rate would turn
    weight decay into growth, so the gradient is negated.
    """

    scale: float = 0.01
    decay_weights: bool = True
    """Whether weight decay acts during the ascent (the paper); False in the authors' code."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"The ascent scale S must lie in [0, 100], got {self.scale}.")

    def settings(self, group: Group, at: StepContext) -> dict[str, float]:
        decay = {} if self.decay_weights else {"weight_decay": 0.0}
        return {"lr": group["lr"] * self.scale, **decay}

    def apply_(self, at: StepContext) -> None:
        _multiply_(at.gradients, -1.0)


@dataclass(frozen=True)
class RandomAscent(StepTransform):
    """SA-GD (arXiv:2107.07558): ascend with a probability that grows with the loss's last change.

    P(descent) = exp(-|dE| / (t_initial * lr * ln(n + 1))), dE the last change of the loss, n the
    step: as in a public reimplementation; the authors published no code.
    """

    t_initial: float = 15.0
    scale: float = 1.0
    """S of an ascending step."""
    max_probability: float = 0.33
    seed: int = 0

    def ascends(self, at: StepContext) -> bool:
        """A pure function of (seed, step, rate, losses): the same on every process."""
        if at.loss is None or at.previous is None or at.lr <= 0:
            return False
        temperature = self.t_initial * at.lr * log(at.step + 2)
        descent = float((-(at.loss - at.previous).abs() / temperature).exp())
        drawn = seed_for(self.seed, at.step, "random ascent") / 2**63
        return drawn < min(1 - descent, self.max_probability)

    def settings(self, group: Group, at: StepContext) -> dict[str, float]:
        return {"lr": group["lr"] * self.scale} if self.ascends(at) else {}

    def apply_(self, at: StepContext) -> None:
        if self.ascends(at):
            _multiply_(at.gradients, -1.0)


@dataclass(frozen=True)
class LandscapeModification(StepTransform):
    """Descend on H instead of U: grad H = grad U / (f((U - c)+) + eps)
    (Choi, arXiv:2009.00195; Todea, eq. 2.1 and 2.12)."""

    f: Callable[[Tensor], Tensor] = lambda excess: excess
    eps: float | Schedule = 1.0
    c: float | None = None
    """None for the running minimum of the loss, the adaptive form."""
    relative: bool = False
    """Multiply by eps, which leaves the gradient unchanged at the running minimum (eq. 2.8)."""

    def apply_(self, at: StepContext) -> None:
        eps = _value(self.eps, at)
        _multiply_(
            at.gradients, (eps if self.relative else 1.0) / (self.f(at.excess(self.c)) + eps)
        )


@dataclass(frozen=True)
class GradientNoise(StepTransform):
    """Langevin diffusion: w -= lr grad U; w += sqrt(2 T lr) N(0, 1) (Todea, eq. 2.4).

    With `friction` g it is kinetic: SGD's momentum becomes the velocity of eq. 2.5, with the factor
    max(0, 1 - g sqrt(lr)) per step, and noise sqrt(2 (1 - momentum) T / lr) in the gradient keeps
    the temperature. Exact for SGD, a heuristic for other optimizers.
    """

    temperature: Schedule
    friction: float | Schedule | None = None
    """Per unit of time; eq. 2.5 has 1 / T. None for no velocity."""
    f: Callable[[Tensor], Tensor] | None = None
    """State-dependent noise (eq. 2.7): the temperature becomes f((U - c)+) + T."""
    seed: int = 0

    def settings(self, group: Group, at: StepContext) -> dict[str, float]:
        return {} if self.friction is None else {"momentum": self._momentum(group, at)}

    def apply_(self, at: StepContext) -> None:
        heat = self.temperature(at.step)
        level = heat if self.f is None else heat + self.f(at.excess())
        numbers: dict[Any, Iterator[int]] = defaultdict(
            count
        )  # groups of one name are numbered together
        for number, group in enumerate(at.groups):
            name = group.get("name", number)
            if group["lr"] <= 0:
                continue
            momentum = self._momentum(group, at)
            strength = (2 * (1 - momentum) / group["lr"]) ** 0.5 * level**0.5
            for p in group["params"]:
                i = next(numbers[name])
                if p.grad is not None:
                    noise = normal_like(p, self.seed, at.step, f"gradient noise {name} {i}")
                    p.grad.add_(noise.mul_(strength * at.grad_scale))

    def _momentum(self, group: Group, at: StepContext) -> float:
        if self.friction is None:
            return group.get("momentum", 0.0)
        return max(0.0, 1 - sqrt(group["lr"]) * _value(self.friction, at))


@dataclass(frozen=True)
class DistanceHills(StepTransform):
    """Repel from snapshots: add the gradient of strength * mean_c exp(-|w - w_c|^2 / (2 sigma^2)).

    The force vanishes at the centre of a hill and far away, so sigma is relative to |w_c|.
    """

    snapshots: Snapshots
    strength: float = 1.0
    width: float = 0.1
    """sigma / |w_c|."""

    def apply_(self, at: StepContext) -> None:
        parameters = at.parameters
        for snapshot in self.snapshots.values:
            centre = [snapshot[p] for p in parameters]
            away = torch._foreach_sub([p.detach() for p in parameters], centre)
            square = _total_norm(list(away)).square()
            sigma2 = self.width**2 * _total_norm(centre).square()
            height = -self.strength / len(self.snapshots.values) * torch.exp(-square / (2 * sigma2))
            _multiply_(list(away), height / sigma2 * at.grad_scale)
            torch._foreach_add_(at.gradients, away)


@dataclass(frozen=True)
class RandomDirection(StepTransform):
    """Control for ascent: a step of equal length in a random direction.

    A new direction in every step would lead nowhere: after k steps a walk is sqrt(k) steps away,
    where an ascent is up to k.
    """

    scale: float = 0.01
    seed: int = 0
    period: int = 1
    """Steps from one direction to the next."""

    def settings(self, group: Group, at: StepContext) -> dict[str, float]:
        return {"lr": group["lr"] * self.scale}

    def apply_(self, at: StepContext) -> None:
        gradients = at.gradients
        noise = [
            normal_like(gradient, self.seed, at.step // self.period, f"random direction {i}")
            for i, gradient in enumerate(gradients)
        ]
        if gradients:
            _multiply_(noise, _total_norm(gradients) / _total_norm(noise))
            torch._foreach_copy_(gradients, noise)


@dataclass(frozen=True)
class Freeze(StepTransform):
    """Freeze parameters: without a gradient neither decay nor momentum moves them."""

    def apply_(self, at: StepContext) -> None:
        for parameter in at.parameters:
            parameter.grad = None


@dataclass(frozen=True)
class Masked(StepTransform):
    """Zero the gradients of pruned weights. Reset the moments when the mask changes."""

    masks: Masks

    def apply_(self, at: StepContext) -> None:
        for p in at.parameters:
            if p in self.masks.keep and p.grad is not None:
                p.grad.mul_(self.masks.keep[p])


def normal_like(like: Tensor, seed: int, step: int, stream: str) -> Tensor:
    """A standard normal tensor, a pure function of (seed, step, stream)."""
    rng = generator_for(seed, step, stream, like.device)
    return torch.randn(like.shape, generator=rng, device=like.device, dtype=like.dtype)


def _value(setting: float | Schedule, at: StepContext) -> float:
    return setting(at.step) if callable(setting) else setting


def _multiply_(tensors: list[Tensor], factor: Tensor | float) -> None:
    if tensors:
        torch._foreach_mul_(tensors, factor)


def _total_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm over all tensors, on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
