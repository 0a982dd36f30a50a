"""Where a run computes: device, GPU kernels, and the processes that share its batch."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


def resolve_device(name: str) -> torch.device:
    """The device of a name: auto (the GPU if there is one), cpu, cuda or cuda:N.

    `cuda` becomes `cuda:N` with the current GPU's number, so that one device has one name.

    Raises:
        ValueError: Unknown name, or no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no device {name!r}. Use auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"Device {name!r} is not supported. Use auto, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            f"There is no device {name}: torch sees no GPU. Use --device cpu, or see "
            "`dreamsa doctor`."
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        raise ValueError(f"There is no device {name}: there are {count} GPUs, numbered from 0.")
    return torch.device("cuda", index)


@lru_cache
def triton_problem(probe: Callable[[torch.device], None], device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device; None if they can.

    Args:
        probe: Launches the kernels once on a device and raises if that fails.
    """
    if device.type != "cuda":
        return f"they need a CUDA device, the device is {device.type}"
    try:
        probe(device)
    except Exception as error:  # whatever fails, the torch kernels can take over
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        return f"{type(error).__name__}: {reason}"
    return None


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Let torch compute with `count` threads from here on, on which its results depend.

    numba sets OpenMP's number, which torch shares, when its first kernel starts: it is let do so
    before.
    """
    import numba

    numba.get_num_threads()
    torch.set_num_threads(count)


@dataclass(frozen=True)
class Processes:
    """The processes of one run, each of which renders a part of every batch."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """The processes that `accelerate launch` (or torchrun) started; a single one otherwise.

        Raises:
            ValueError: RANK and WORLD_SIZE are not numbers, or contradict each other.
        """
        count, rank = _environment_number("WORLD_SIZE", 1), _environment_number("RANK", 0)
        if not 0 <= rank < max(count, 1):
            raise ValueError(
                f"The environment has RANK={rank} with WORLD_SIZE={count}: no launcher sets that. "
                "Unset both, or start with `accelerate launch`."
            )
        if count <= 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def share(self, count: int, name: str) -> slice:
        """This process's part of `count` items.

        Raises:
            ValueError: The items cannot be split evenly; names the setting.
        """
        if count % self.count:
            message = f"{name} = {count} cannot be split over {self.count} processes"
            raise ValueError(f"{message}. Use a multiple of {self.count}.")
        each = count // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def wait(self) -> None:
        """Block until every process has arrived here."""
        if self.count > 1:
            torch.distributed.barrier()

    def sum_(self, tensors: list[Tensor]) -> None:
        """Sum tensors over all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def broadcast(self, value: str) -> str:
        """The first process's value, on every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip() or str(default)
    if not text.isdecimal():
        raise ValueError(
            f"The environment variable {name} must be a whole number, got {text!r}. Unset it."
        )
    return int(text)
