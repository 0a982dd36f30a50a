"""What happens inside a step: changes of gradients and of settings, undone as soon as the step is over.

A transform has two halves. `settings` returns values ("lr", "weight_decay", "momentum") that hold for this step only; the annealer puts
the old ones back afterwards, so that a scheduler never sees them. `apply_` changes gradients in place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
class Moment:
    """The step that is about to be taken, as a rule sees it. Losses stay on their device."""

    groups: Sequence[Group]
    step: int
    lr: float = 0.0
    """The scheduled learning rate of the optimizer's first group, before any rule."""
    loss: Tensor | None = None
    """What was observed for this step."""
    previous: Tensor | None = None
    """What was observed for the step before."""
    lowest: Tensor | None = None
    """The smallest loss observed so far, this step's included."""
    grad_scale: Tensor | float = 1.0
    """What gradients are multiplied by at this moment (fused optimizers under GradScaler): added terms need it too."""

    @property
    def parameters(self) -> list[Tensor]:
        """Those that have a gradient."""
        return [p for group in self.groups for p in group["params"] if p.grad is not None]

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def excess(self) -> Tensor:
        """(U - c)+, the loss above its running minimum.

        Raises:
            RuntimeError: No loss was observed.
        """
        if self.loss is None or self.lowest is None:
            raise RuntimeError("This rule needs the loss of every step: call annealer.observe(loss) before optimizer.step().")
        return (self.loss - self.lowest).clamp(min=0)


class StepTransform:
    """In force in every step of its rule's window. A new method overrides one or both halves."""

    def settings(self, group: Group, at: Moment) -> dict[str, float]:
        """Values for one group that hold for this step only."""
        return {}

    def apply_(self, at: Moment) -> None:
        """Change the gradients in place; with a closure, after each of its calls."""


@dataclass(frozen=True)
class GradientAscent(StepTransform):
    """Walk uphill: negate the gradient and scale each group's current learning rate by `scale` (the thesis' S, eq. 9; SEAL, eq. 3).

    The rate is scaled and not the gradient, because Adam cancels any factor on the gradient. The gradient is negated
    and not the rate, because a negative rate would turn weight decay into growth.
    """

    scale: float = 0.01
    decay_weights: bool = True
    """Whether weight decay goes on shrinking while the loss is climbed (the paper's words); False as in the authors' code."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"The ascent scale S must lie in [0, 100], got {self.scale}.")

    def settings(self, group: Group, at: Moment) -> dict[str, float]:
        return {"lr": group["lr"] * self.scale, **({} if self.decay_weights else {"weight_decay": 0.0})}

    def apply_(self, at: Moment) -> None:
        _multiply_(at.gradients, -1.0)


@dataclass(frozen=True)
class RandomAscent(StepTransform):
    """SA-GD (arXiv:2107.07558): now and then go uphill, the likelier the more the loss has just changed and the hotter it is.

    P(descent) = exp(-|dE| / (t_initial * lr * ln(n + 1))) with dE the loss's last change and n the step, as a public reimplementation
    has it (the authors published no code); ascent has at most probability `most`. Reads two losses back from the device each step.
    """

    t_initial: float = 15.0
    scale: float = 1.0
    """S of a step uphill."""
    most: float = 0.33
    seed: int = 0

    def climbs(self, at: Moment) -> bool:
        """The decision for this step: a pure function of (seed, step, rate, losses), the same on every process."""
        if at.loss is None or at.previous is None or at.lr <= 0:
            return False
        temperature = self.t_initial * at.lr * log(at.step + 2)
        ascent = min(1 - float((-(at.loss - at.previous).abs() / temperature).exp()), self.most)
        return seed_for(self.seed, at.step, "random ascent") / 2**63 < ascent

    def settings(self, group: Group, at: Moment) -> dict[str, float]:
        return {"lr": group["lr"] * self.scale} if self.climbs(at) else {}

    def apply_(self, at: Moment) -> None:
        if self.climbs(at):
            _multiply_(at.gradients, -1.0)


@dataclass(frozen=True)
class LandscapeModification(StepTransform):
    """Descend on H instead of U: grad H = grad U / (f((U - c)+) + eps), c the running minimum (Choi, arXiv:2009.00195; Todea, sec. 2.2)."""

    f: Callable[[Tensor], Tensor] = lambda excess: excess
    eps: float | Schedule = 1.0
    relative: bool = False
    """Multiply by eps, so that at the running minimum the gradient is unchanged (eq. 2.8, where eps is the temperature)."""

    def apply_(self, at: Moment) -> None:
        eps = self.eps(at.step) if callable(self.eps) else self.eps
        _multiply_(at.gradients, (eps if self.relative else 1.0) / (self.f(at.excess()) + eps))


@dataclass(frozen=True)
class GradientNoise(StepTransform):
    """Simulated annealing by Langevin diffusion: w -= lr grad U; w += sqrt(2 T lr) N(0, 1) (Todea, eq. 2.4).

    With `kinetic`, momentum is the velocity of eq. 2.5, whose friction is 1/T: SGD's momentum becomes 1 - sqrt(lr)/T, at least 0, and
    the noise sqrt(2 (1 - momentum) T / lr) on the gradient keeps the same temperature. Exact for SGD; for other optimizers a heuristic.
    """

    temperature: Schedule
    kinetic: bool = False
    f: Callable[[Tensor], Tensor] | None = None
    """State-dependent noise (eq. 2.7): the temperature becomes f((U - c)+) + T."""
    seed: int = 0

    def settings(self, group: Group, at: Moment) -> dict[str, float]:
        return {"momentum": self._momentum(group, at)} if self.kinetic else {}

    def apply_(self, at: Moment) -> None:
        heat = self.temperature(at.step)
        level = heat if self.f is None else heat + self.f(at.excess())
        for number, group in enumerate(at.groups):
            if group["lr"] <= 0:
                continue
            damping = 1 - (self._momentum(group, at) if self.kinetic else group.get("momentum", 0.0))
            strength = (2 * damping / group["lr"]) ** 0.5 * level**0.5
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    rng = generator_for(self.seed, at.step, f"gradient noise {group.get('name', number)} {i}", p.device)
                    noise = torch.randn(p.shape, generator=rng, device=p.device, dtype=p.dtype)
                    p.grad.add_(noise.mul_(strength * at.grad_scale))

    def _momentum(self, group: Group, at: Moment) -> float:
        heat = self.temperature(at.step)
        return max(0.0, 1 - sqrt(group["lr"]) / heat) if heat > 0 else 0.0


@dataclass(frozen=True)
class DistanceHills(StepTransform):
    """Keep away from snapshots: add the gradient of (strength / C) sum_c exp(-|w - w_c|^2 / (2 sigma^2)).

    A hill pushes by nothing at its very top and by nothing far away, so sigma is in units of the snapshot's own norm.
    """

    snapshots: Snapshots
    strength: float = 1.0
    width: float = 0.1
    """sigma / |w_c|."""
    absolute: bool = False
    """`width` is sigma itself."""

    def apply_(self, at: Moment) -> None:
        parameters = at.parameters
        for snapshot in self.snapshots.values:
            centre = [snapshot[p] for p in parameters]
            away = torch._foreach_sub([p.detach() for p in parameters], centre)
            square = _total_norm(list(away)).square()
            sigma2 = self.width**2 * (1.0 if self.absolute else _total_norm(centre).square())
            slope = -self.strength / len(self.snapshots.values) * torch.exp(-square / (2 * sigma2)) / sigma2
            _multiply_(list(away), slope * at.grad_scale)
            torch._foreach_add_(at.gradients, away)


@dataclass(frozen=True)
class RandomDirection(StepTransform):
    """The control for ascent: as long a step in a random direction, at `scale` times the learning rate."""

    scale: float = 0.01
    seed: int = 0

    def settings(self, group: Group, at: Moment) -> dict[str, float]:
        return {"lr": group["lr"] * self.scale}

    def apply_(self, at: Moment) -> None:
        gradients = at.gradients
        noise = []
        for i, gradient in enumerate(gradients):
            rng = generator_for(self.seed, at.step, f"random direction {i}", gradient.device)
            noise.append(torch.randn(gradient.shape, generator=rng, device=gradient.device, dtype=gradient.dtype))
        if gradients:
            _multiply_(noise, _total_norm(gradients) / _total_norm(noise))
            torch._foreach_copy_(gradients, noise)


@dataclass(frozen=True)
class Freeze(StepTransform):
    """Hold parameters where they are: the optimizer gets no gradient, so neither decay nor momentum moves them."""

    def apply_(self, at: Moment) -> None:
        for parameter in at.parameters:
            parameter.grad = None


@dataclass(frozen=True)
class Masked(StepTransform):
    """Keep pruned weights at zero: no gradient reaches them. Forget moments when the mask changes."""

    masks: Masks

    def apply_(self, at: Moment) -> None:
        for p in at.parameters:
            if p in self.masks.keep and p.grad is not None:
                p.grad.mul_(self.masks.keep[p])


def _multiply_(tensors: list[Tensor], factor: Tensor | float) -> None:
    if tensors:
        torch._foreach_mul_(tensors, factor)


def _total_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm over all tensors together, on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
