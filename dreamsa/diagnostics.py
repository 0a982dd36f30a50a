"""What this machine has: devices, backends, programs, models and versions."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dreamsa.choices import BACKENDS, BackendName
from dreamsa.compiled import cache_folder
from dreamsa.config import ModelConfig
from dreamsa.device import available_cores, resolve_device
from dreamsa.fields.backends import resolve_backend
from dreamsa.fields.encode_tcnn import BUILD_COMMANDS
from dreamsa.guidance.stable_diffusion import locate_model
from dreamsa.rendering.kernels import resolve_kernels
from dreamsa.version import __version__

PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "numba", "triton", "safetensors"),
    "gradio",
)


def doctor() -> dict[str, Any]:
    device = resolve_device("auto")
    return {
        "dreamsa": __version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "hash grid": {name: _backend(name, device) for name in BACKENDS if name != "auto"},
        "renderer": "{} ({})".format(*resolve_kernels(device)),
        "tiny-cuda-nn, to build": " && ".join(BUILD_COMMANDS),
        "ffmpeg": _ffmpeg(),
        "compiled kernels": cache_folder(),
        "embedded model": _embedded_model(),
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


def _embedded_model() -> str:
    try:
        return locate_model(ModelConfig())[1]
    except (ValueError, FileNotFoundError) as error:
        return f"missing: {error}"


def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        return f"missing: {error}"
