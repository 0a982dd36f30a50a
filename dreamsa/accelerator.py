"""Whether kernels written in Triton run on a GPU of this machine."""

from functools import lru_cache
from importlib import import_module

import torch


@lru_cache
def why_not(module: str, device: torch.device) -> str | None:
    """Why a module of Triton kernels cannot be used on a GPU: no Triton, no C compiler, too old a card, whatever it is. None where its
    `probe(device)` ran."""
    try:
        import_module(module).probe(device)
    except Exception as error:  # torch does the same work, more slowly
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
    return None
