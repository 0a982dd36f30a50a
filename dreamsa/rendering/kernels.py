"""Choice of the renderer's kernels."""

from types import ModuleType
from typing import Literal

import torch

from dreamsa.device import triton_problem
from dreamsa.rendering import kernels_numba, kernels_torch


def resolve_kernels(
    device: torch.device, choice: Literal["auto", "torch"] = "auto"
) -> tuple[Literal["torch", "numba", "triton"], str]:
    """The kernels that run on a device, and the reason: ("triton", "the device is a GPU")."""
    if choice == "torch":
        return "torch", "requested"
    if device.type == "cpu":
        return "numba", "the device is a CPU"
    problem = triton_problem(_probe_triton, device)
    return ("torch", f"no Triton: {problem}") if problem else ("triton", "the device is a GPU")


def kernels_for(device: torch.device, choice: Literal["auto", "torch"] = "auto") -> ModuleType:
    """The module of `resolve_kernels`: `march`, `visible` and `composite` as in `kernels_torch`."""
    name, _ = resolve_kernels(device, choice)
    if name == "triton":
        from dreamsa.rendering import kernels_triton  # Triton is optional

        return kernels_triton
    return kernels_numba if name == "numba" else kernels_torch


def _probe_triton(device: torch.device) -> None:
    from dreamsa.rendering.kernels_triton import probe

    probe(device)
