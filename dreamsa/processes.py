"""Several processes as one: who does which share of a batch, and how gradients are added up."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """One process has everything and has nothing to add up."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """What `accelerate launch` set up, if it did."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    def share(self, count: int, what: str) -> slice:
        """Our part of `count` things.

        Raises:
            ValueError: They cannot be split evenly.
        """
        if count % self.count:
            raise ValueError(f"{what} = {count} cannot be split over {self.count} processes. Use a multiple of {self.count}.")
        each = count // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def sum_(self, tensors: list[Tensor]) -> None:
        """Add tensors up over all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
