"""numba's compiler, with a folder for what it has compiled that can be written to."""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numba
from numba import njit, prange

__all__ = ["cache_folder", "njit", "prange"]

_HERE = Path(__file__).parent / "__pycache__"
_HOME = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "numba"


def cache_folder() -> str:
    """Where compiled kernels are kept, for `dreamsa doctor`."""
    return numba.config.CACHE_DIR or str(_HERE if _is_writable(_HERE) else _HOME)  # pyright: ignore[reportAttributeAccessIssue]


def _is_writable(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    return False


def _prepare() -> None:
    """numba raises where neither the package's folder nor the user's cache can be written: give it
    a temporary folder there, also for processes that this one starts."""
    if numba.config.CACHE_DIR or _is_writable(_HERE) or _is_writable(_HOME):  # pyright: ignore[reportAttributeAccessIssue]
        return
    folder = tempfile.mkdtemp(prefix="dreamsa-numba-")
    numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = folder  # pyright: ignore[reportAttributeAccessIssue]
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


_prepare()
