"""Events at a window's edge: reset moments, move or reinitialize parameters, snapshot, prune."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreamsa.annealing.groups import by_name
from dreamsa.annealing.memory import Masks, Snapshots
from dreamsa.annealing.transforms import Group, normal_like

Fresh = Callable[[int], Sequence[Tensor]]
"""Step -> new initial values of all parameters of the optimizer, in the order of its groups."""


Event = Callable[[Optimizer, Sequence[Group], int], None]
"""(optimizer, groups of the rule, step) -> None, called before that step's update."""

Direction = Callable[[Sequence[Tensor], int], Sequence[Tensor]]
"""(all parameters of the optimizer, step) -> one tensor of each parameter's shape."""


def parameters(groups: Sequence[Group]) -> list[Tensor]:
    return [p for group in groups for p in group["params"]]


@dataclass(frozen=True)
class ResetMoments:
    """Clear the optimizer state: kept momentum would carry the first steps in the old direction."""

    def __call__(self, optimizer: Optimizer, groups: Sequence[Group], step: int) -> None:
        for parameter in parameters(groups):
            optimizer.state.pop(parameter, None)


def random_direction(seed: int) -> Direction:
    """A standard normal vector, drawn for each seed and step."""
    return lambda known, step: [
        normal_like(p, seed, step, f"displace {i}") for i, p in enumerate(known)
    ]


def direction_to(fresh: Fresh) -> Direction:
    """From the current parameters to fresh ones."""
    return lambda known, step: [new.to(p) - p for p, new in zip(known, fresh(step), strict=True)]


@dataclass(frozen=True)
class Move:
    """Move parameters along a direction."""

    direction: Direction
    factor: float = 1.0
    """Multiple of the direction; ignored if `norms` is given."""
    norms: Mapping[str, float] | None = None
    """Euclidean norm of each named group's displacement; other groups stay."""

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, groups: Sequence[Group], step: int) -> None:
        known = parameters(optimizer.param_groups)
        along = dict(zip(known, self.direction(known, step), strict=True))
        for name, moved in by_name(groups).items():
            if self.norms is None:
                for parameter in moved:
                    parameter.add_(along[parameter], alpha=self.factor)
                continue
            length = torch.stack([along[p].norm() for p in moved]).norm().clamp(min=1e-30)
            factor = self.norms.get(name, 0.0) / length
            for parameter in moved:
                parameter.add_(along[parameter] * factor)


@dataclass(frozen=True)
class Blend:
    """w = keep * w + add * fresh, outside the fit hypothesis `fit` if given."""

    keep: float
    add: float
    fresh: Fresh
    fit: Masks | None = None

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, groups: Sequence[Group], step: int) -> None:
        new = dict(zip(parameters(optimizer.param_groups), self.fresh(step), strict=True))
        for parameter in parameters(groups):
            value = self.add * new[parameter].to(parameter)
            value = self.keep * parameter + value if self.keep else value
            fit = None if self.fit is None else self.fit.keep.get(parameter)
            parameter.copy_(value if fit is None else torch.where(fit, parameter, value))


def reinitialize(fresh: Fresh, fit: Masks | None = None) -> Blend:
    """Replace parameters: of later layers (LLF, arXiv:2202.00155), of the head (RIFLE,
    arXiv:2007.03349), or outside `fit` (knowledge evolution, arXiv:2103.05152)."""
    return Blend(0.0, 1.0, fresh, fit)


def interpolate(eta: float, fresh: Fresh) -> Blend:
    """Move the fraction `eta` towards fresh parameters (Perturb-and-Revise, arXiv:2412.05279)."""
    if not 0 <= eta <= 1:
        raise ValueError(f"The interpolation fraction eta must lie in [0, 1], got {eta}.")
    return Blend(1 - eta, eta, fresh)


def shrink_and_perturb(shrink: float, perturb: float, fresh: Fresh) -> Blend:
    """w = shrink * w + perturb * fresh (Ash and Adams, arXiv:1910.08475, with 0.4 and 0.1)."""
    return Blend(shrink, perturb, fresh)


@dataclass(frozen=True)
class Snapshot:
    """Append a copy of the parameters to `into`."""

    into: Snapshots

    def __call__(self, optimizer: Optimizer, groups: Sequence[Group], step: int) -> None:
        self.into.take(parameters(groups))


@dataclass(frozen=True)
class Rewind:
    """Restore the first snapshot; pruned weights stay zero (lottery tickets, arXiv:1803.03635)."""

    snapshots: Snapshots
    masks: Masks | None = None

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, groups: Sequence[Group], step: int) -> None:
        for parameter in parameters(groups):
            parameter.copy_(self.snapshots.values[0][parameter])
        if self.masks is not None:
            self.masks.apply_()


@dataclass(frozen=True)
class Prune:
    """Zero the `fraction` of the remaining weights with the lowest scores, over all masked
    parameters together."""

    masks: Masks
    fraction: float = 0.2
    score: Literal["magnitude", "increase"] = "magnitude"
    """|w| (arXiv:1803.03635), or |w| - |w at the first snapshot| (arXiv:1905.01067)."""
    snapshots: Snapshots | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"The fraction to prune must lie in [0, 1), got {self.fraction}.")
        if self.score == "increase" and self.snapshots is None:
            raise ValueError("The score 'increase' needs the initial weights: pass snapshots.")

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, groups: Sequence[Group], step: int) -> None:
        chosen = [p for p in parameters(groups) if p in self.masks.keep]
        initial = self.snapshots.values[0] if self.score == "increase" and self.snapshots else None
        scores = {p: p.abs() - (initial[p].abs() if initial else 0) for p in chosen}
        left = torch.cat([scores[p][self.masks.keep[p]] for p in chosen])
        order = left.argsort(stable=True)
        stays = torch.ones_like(left, dtype=torch.bool)
        stays[order[: round(self.fraction * len(left))]] = False
        counts = [int(self.masks.keep[p].sum()) for p in chosen]
        for p, part in zip(chosen, stays.split(counts), strict=True):
            self.masks.keep[p][self.masks.keep[p].clone()] = part
        self.masks.apply_()
