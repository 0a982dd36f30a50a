"""What happens at a window's edge, once: moments forgotten, parameters moved, snapshots taken, weights pruned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from dreamsa.annealing.memory import Masks, Snapshots
from dreamsa.annealing.transforms import Group
from dreamsa.randomness import generator_for

Fresh = Callable[[int], Sequence[Tensor]]
"""Step -> new initial values of all the optimizer's parameters, in the order of its groups."""


class Event(Protocol):
    """Called at a window's edge, before that step's update."""

    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None: ...


def parameters(groups: Sequence[Group]) -> list[Tensor]:
    return [p for group in groups for p in group["params"]]


@dataclass(frozen=True)
class ResetMoments:
    """Forget what the optimizer has gathered: kept momentum would carry the first steps on in the old direction."""

    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None:
        for parameter in parameters(groups):
            optimizer.state.pop(parameter, None)


@dataclass(frozen=True)
class Displace:
    """Move by a random normal vector of a given size: the control that ascent must beat."""

    rms: float
    """Root mean square of the move per parameter. Adam moves a parameter by about lr a step, so an ascent of k steps at S
    moves it by at most S * lr * k."""
    seed: int = 0

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None:
        for i, parameter in enumerate(parameters(groups)):
            rng = generator_for(self.seed, step, f"displace {i}", parameter.device)
            parameter.add_(torch.randn(parameter.shape, generator=rng, device=parameter.device), alpha=self.rms)


Direction = Callable[[Sequence[Tensor], int], Sequence[Tensor]]
"""All the optimizer's parameters, in the order of its groups, and the step -> one tensor of each one's shape."""


def random_direction(seed: int) -> Direction:
    """A normal vector, drawn anew for each seed and step."""

    def draw(known: Sequence[Tensor], step: int) -> list[Tensor]:
        rngs = [generator_for(seed, step, f"displace {i}", p.device) for i, p in enumerate(known)]
        return [torch.randn(p.shape, generator=rng, device=p.device) for p, rng in zip(known, rngs, strict=True)]

    return draw


def direction_to(fresh: Fresh) -> Direction:
    """From where the parameters are to fresh ones."""
    return lambda known, step: [new.to(p) - p for p, new in zip(known, fresh(step), strict=True)]


@dataclass(frozen=True)
class Move:
    """Move each named group by a given Euclidean norm along a direction, as far as another method has moved it; other groups stay."""

    norms: Mapping[str, float]
    direction: Direction

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None:
        known = parameters(optimizer.param_groups)
        along = dict(zip(known, self.direction(known, step), strict=True))
        for group in groups:
            length = torch.stack([along[p].norm() for p in group["params"]]).norm().clamp(min=1e-30)
            for parameter in group["params"]:
                parameter.add_(along[parameter] * (self.norms.get(group.get("name", ""), 0.0) / length))


@dataclass(frozen=True)
class Blend:
    """w = keep * w + add * fresh. With `fit`, only where it is False: the fit hypothesis of knowledge evolution stays."""

    keep: float
    add: float
    fresh: Fresh
    fit: Masks | None = None

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None:
        new = dict(zip(parameters(optimizer.param_groups), self.fresh(step), strict=True))
        for parameter in parameters(groups):
            value = (
                (self.keep * parameter + self.add * new[parameter].to(parameter)) if self.keep else self.add * new[parameter].to(parameter)
            )
            fit = None if self.fit is None else self.fit.keep.get(parameter)
            parameter.copy_(value if fit is None else torch.where(fit, parameter, value))


def Reinitialize(fresh: Fresh, fit: Masks | None = None) -> Blend:
    """Start again from fresh values: later layers (LLF, arXiv:2202.00155), the head (RIFLE, arXiv:2007.03349), or all that is not in the fit
    hypothesis `fit` (knowledge evolution, arXiv:2103.05152)."""
    return Blend(0.0, 1.0, fresh, fit)


def Interpolate(eta: float, fresh: Fresh) -> Blend:
    """Move a share `eta` of the way towards fresh parameters (Perturb-and-Revise, arXiv:2412.05279). eta = 1 starts from scratch."""
    if not 0 <= eta <= 1:
        raise ValueError(f"The interpolation share eta must lie in [0, 1], got {eta}.")
    return Blend(1 - eta, eta, fresh)


def ShrinkAndPerturb(shrink: float, perturb: float, fresh: Fresh) -> Blend:
    """w = shrink * w + perturb * fresh (Ash and Adams, arXiv:1910.08475; theirs are 0.4 and 0.1)."""
    return Blend(shrink, perturb, fresh)


@dataclass(frozen=True)
class Snapshot:
    """Remember the parameters as they are."""

    into: Snapshots

    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None:
        self.into.take(parameters(groups))


@dataclass(frozen=True)
class Rewind:
    """Go back to a snapshot; what `masks` has pruned stays at zero (lottery tickets, arXiv:1803.03635)."""

    snapshots: Snapshots
    index: int = 0
    masks: Masks | None = None

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None:
        for parameter in parameters(groups):
            parameter.copy_(self.snapshots.values[self.index][parameter])
        if self.masks is not None:
            self.masks.apply_()


@dataclass(frozen=True)
class Prune:
    """Drop the `share` of the remaining weights with the lowest score, over all masked parameters together: they are zero from now on.

    Scores: "magnitude" is |w| (arXiv:1803.03635); "increase" is |w| - |w at the first snapshot| (arXiv:1905.01067).
    """

    masks: Masks
    share: float = 0.2
    score: Literal["magnitude", "increase"] = "magnitude"
    snapshots: Snapshots | None = None
    """Where the weights began; needed by "increase"."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"The share to prune must lie in [0, 1), got {self.share}.")
        if self.score == "increase" and self.snapshots is None:
            raise ValueError("The score 'increase' compares with where the weights began: give snapshots.")

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None:
        chosen = [p for p in parameters(groups) if p in self.masks.keep]
        scores = {p: p.abs() - (self.snapshots.values[0][p].abs() if self.score == "increase" and self.snapshots else 0) for p in chosen}
        left = torch.cat([scores[p][self.masks.keep[p]] for p in chosen])
        order = left.argsort(stable=True)
        stays = torch.ones_like(left, dtype=torch.bool)
        stays[order[: round(self.share * len(left))]] = False
        for p, part in zip(chosen, stays.split([int(self.masks.keep[p].sum()) for p in chosen]), strict=True):
            self.masks.keep[p][self.masks.keep[p].clone()] = part
        self.masks.apply_()
