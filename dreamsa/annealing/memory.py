"""State that rules keep between windows, as tensors for checkpoints: snapshots and masks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Snapshots:
    """Copies of parameters at earlier steps, oldest first."""

    values: list[dict[Tensor, Tensor]] = field(default_factory=list, init=False)
    """Per snapshot: parameter -> its value."""

    def take(self, parameters: Iterable[Tensor]) -> None:
        self.values.append({p: p.detach().clone() for p in parameters})

    def tensors(self) -> dict[str, Tensor]:
        """All snapshots for a checkpoint, named SNAPSHOT.POSITION."""
        numbered = ((i, enumerate(one.values())) for i, one in enumerate(self.values))
        return {f"{i}.{j}": value for i, one in numbered for j, value in one}

    def restore(self, parameters: Iterable[Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`; `parameters` are those of the snapshots, in the same order."""
        known = list(parameters)
        count = len({name.split(".")[0] for name in tensors})
        self.values = [
            {p: tensors[f"{i}.{j}"].to(p.device) for j, p in enumerate(known)} for i in range(count)
        ]


@dataclass
class Masks:
    """Weights to keep: parameter -> bool tensor; parameters without a mask are kept entirely."""

    keep: dict[Tensor, Tensor] = field(default_factory=dict)

    @classmethod
    def full(cls, parameters: Iterable[Tensor]) -> "Masks":
        """Masks that keep everything; none for biases and norms, which are never pruned."""
        return cls({p: torch.ones_like(p, dtype=torch.bool) for p in parameters if p.ndim > 1})

    @torch.no_grad()
    def apply_(self) -> None:
        """Zero the masked weights."""
        for parameter, mask in self.keep.items():
            parameter.mul_(mask)

    def tensors(self) -> dict[str, Tensor]:
        return {str(i): mask for i, mask in enumerate(self.keep.values())}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self.keep):
            self.keep[parameter] = tensors[str(i)].to(parameter.device)
