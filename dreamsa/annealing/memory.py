"""What rules remember from one window to the next: snapshots of parameters and masks over them. Both go into a checkpoint as tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Snapshots:
    """Copies of some parameters at earlier steps, the oldest first."""

    most: int | None = None
    """How many are kept; the oldest goes first. None keeps all."""
    values: list[dict[Tensor, Tensor]] = field(default_factory=list, init=False)
    """Per snapshot, parameter -> its value then."""

    def take(self, parameters: Iterable[Tensor]) -> None:
        self.values.append({p: p.detach().clone() for p in parameters})
        if self.most is not None:
            self.values = self.values[-self.most :]

    def tensors(self) -> dict[str, Tensor]:
        """All of them for a checkpoint, as SNAPSHOT.POSITION."""
        return {f"{i}.{j}": value for i, one in enumerate(self.values) for j, value in enumerate(one.values())}

    def restore(self, parameters: Iterable[Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`; `parameters` are those that were taken, in the same order."""
        known = list(parameters)
        count = len({name.split(".")[0] for name in tensors})
        self.values = [{p: tensors[f"{i}.{j}"].to(p.device) for j, p in enumerate(known)} for i in range(count)]


@dataclass
class Masks:
    """Which weights are kept: parameter -> bool tensor of its shape. Parameters that are not in it are kept whole."""

    keep: dict[Tensor, Tensor] = field(default_factory=dict)

    @classmethod
    def full(cls, parameters: Iterable[Tensor]) -> "Masks":
        """Everything is kept; over weights of layers only (two dimensions or more), as biases and norms are never pruned."""
        return cls({p: torch.ones_like(p, dtype=torch.bool) for p in parameters if p.ndim > 1})

    @property
    def sparsity(self) -> float:
        """Share of the masked weights that is gone."""
        return 1 - sum(int(m.sum()) for m in self.keep.values()) / max(sum(m.numel() for m in self.keep.values()), 1)

    @torch.no_grad()
    def apply_(self) -> None:
        """Set what is not kept to zero."""
        for parameter, mask in self.keep.items():
            parameter.mul_(mask)

    def tensors(self) -> dict[str, Tensor]:
        return {str(i): mask for i, mask in enumerate(self.keep.values())}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self.keep):
            self.keep[parameter] = tensors[str(i)].to(parameter.device)
