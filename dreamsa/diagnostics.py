"""What this machine has: devices, backends, programs, models and versions."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dreamsa.choices import BACKENDS, BackendName
from dreamsa.compiled import cache_folder
from dreamsa.config import TOYBOX, ModelConfig
from dreamsa.device import available_cores, resolve_device
from dreamsa.fields.backends import resolve_backend
from dreamsa.fields.encode_tcnn import BUILD_COMMANDS
from dreamsa.guidance.hub import local_folder, size_text
from dreamsa.presets import MODEL_ALIASES
from dreamsa.rendering.kernels import resolve_kernels
from dreamsa.runs import list_runs, runs_folder
from dreamsa.version import __version__

PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "numba", "triton", "safetensors"),
    "gradio",
)


def doctor() -> dict[str, Any]:
    """Facts by name, nested; what is missing or wrong begins with "no" or "missing"."""
    device = resolve_device("auto")
    gpu = device.type == "cuda"
    build = {"tiny-cuda-nn, to build": " && ".join(BUILD_COMMANDS)} if gpu else {}
    return {
        "dreamsa": __version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        **({"GPU memory": _gpu_memory(device)} if gpu else {}),
        "memory": _memory(),
        "runs folder": _runs(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "hash grid": {name: _backend(name, device) for name in BACKENDS if name != "auto"},
        "renderer": "{} ({})".format(*resolve_kernels(device)),
        **build,
        "ffmpeg": _ffmpeg(),
        "compiled kernels": cache_folder(),
        "models": _models(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _backend(name: BackendName, device: torch.device) -> str:
    try:
        return f"yes ({resolve_backend(name, device)[1]})"
    except RuntimeError as error:
        return f"no: {error}"


def _models() -> dict[str, str]:
    """Where the embedded model and the known ones of the Hub are."""
    found = {}
    for name in (TOYBOX, *MODEL_ALIASES):
        try:
            place = local_folder(ModelConfig(name))
            found[name] = str(place) if place else f"not here; dreamsa models download {name}"
        except (ValueError, OSError) as error:
            found[name] = f"missing: {error}"
    return found


def _memory() -> str:
    try:
        page, names = os.sysconf("SC_PAGE_SIZE"), ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")
        free, total = (page * os.sysconf(name) for name in names)
    except (ValueError, OSError, AttributeError):  # not on this system
        return "unknown"
    return f"{size_text(free)} free of {size_text(total)}"


def _gpu_memory(device: torch.device) -> str:
    free, total = torch.cuda.mem_get_info(device)
    return f"{size_text(free)} free of {size_text(total)}"


def _runs() -> str:
    """The folder of runs, what is in it, and the space on its disk."""
    folder = runs_folder().resolve()
    home = next(path for path in (folder, *folder.parents) if path.exists())
    free = size_text(shutil.disk_usage(home).free)
    state = "" if os.access(home, os.W_OK) else "no: cannot be written, "
    return f"{folder} ({state}{len(list_runs(folder))} runs, {free} free)"


def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        return f"missing: {error}"
