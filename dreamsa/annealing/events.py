"""What happens at a window's edge, once: moments forgotten, parameters moved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dreamsa.annealing.transforms import Group
from dreamsa.randomness import generator_for


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


@dataclass(frozen=True)
class Interpolate:
    """Move a share `eta` of the way towards fresh parameters (Perturb-and-Revise, arXiv:2412.05279; shrink and perturb,
    arXiv:1910.08475). eta = 1 starts from scratch."""

    eta: float
    fresh: Callable[[], Sequence[Tensor]]
    """New values of the same parameters, in the same order."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"The interpolation share eta must lie in [0, 1], got {self.eta}.")

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> None:
        for parameter, other in zip(parameters(groups), self.fresh(), strict=True):
            parameter.lerp_(other.to(parameter), self.eta)
