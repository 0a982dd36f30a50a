"""What an ascent does: how far it moves its layers, and what the network still knows at its end.

SEAL presumes that the ascent "drops the training accuracy of the network to completely random"; an
arm whose ascents do not is no test of it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreamsa.annealing import Group, Snapshots

ACCURACY, DISTANCE = "training accuracy after the ascent", "distance of the ascent"
FORGOTTEN = 0.3
"""Training accuracy up to which an ascent has made the network forget."""


@dataclass
class Forgetting:
    """Two events around an ascent, and their measurements until an epoch reports them."""

    accuracy: Callable[[], float]
    """Of the network on its training images, in [0, 1]."""
    start: Snapshots = field(default_factory=Snapshots)
    """All weights when the ascent began; empty between ascents."""
    measured: dict[str, float] = field(default_factory=dict)

    def begin(self, optimizer: Optimizer, groups: Sequence[Group], step: int) -> None:
        """Event at the opening of a window."""
        self.start.values.clear()
        self.start.take(p for group in optimizer.param_groups for p in group["params"])

    def end(self, optimizer: Optimizer, groups: Sequence[Group], step: int) -> None:
        """Event at its end: the training accuracy, and ||w - start|| / ||start|| of its layers."""
        if not self.start.values:  # resumed in mid-ascent from a checkpoint of an older version
            return
        start = self.start.values.pop()
        parameters = [p for group in groups for p in group["params"]]
        moved = norm(p.detach() - start[p] for p in parameters)
        self.measured = {
            ACCURACY: self.accuracy(),
            DISTANCE: moved / norm(start[p] for p in parameters),
        }

    def take(self) -> dict[str, float]:
        """The measurements since the last call."""
        measured, self.measured = self.measured, {}
        return measured


def norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm over all tensors together; 0 without any."""
    given = list(tensors)
    return (
        float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(given)))) if given else 0.0
    )
