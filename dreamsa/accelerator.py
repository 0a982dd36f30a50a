"""Whether kernels written in Triton run on the GPU of this machine."""

from functools import lru_cache
from importlib import import_module


@lru_cache
def why_not(module: str) -> str | None:
    """Why a module of Triton kernels cannot be used here: no Triton, no C compiler, too old a GPU, whatever it is. None where its `probe()` ran."""
    try:
        import_module(module).probe()
    except Exception as error:  # torch does the same work, more slowly
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
    return None
