"""Choice of the hash encoding's backend."""

from typing import Literal

import torch

from dreamsa.choices import BackendName
from dreamsa.device import triton_problem
from dreamsa.fields.encode_numba import encode_numba
from dreamsa.fields.encode_tcnn import encode_tcnn, require_tinycudann
from dreamsa.fields.encode_torch import encode_torch
from dreamsa.fields.layout import BackendUnavailable, Encode, Layout


def resolve_backend(
    name: BackendName, device: torch.device | str
) -> tuple[Literal["torch", "numba", "triton", "tcnn"], str]:
    """The backend that runs on a device, and the reason: ("numba", "the device is a CPU").

    Raises:
        BackendUnavailable: The requested backend cannot run on this device.
    """
    device = torch.device(device)
    if name == "auto":
        if device.type == "cpu":
            return "numba", "the device is a CPU"
        problem = triton_problem(_probe_triton, device)
        return ("torch", f"no Triton: {problem}") if problem else ("triton", "the device is a GPU")
    if name == "numba" and device.type != "cpu":
        raise BackendUnavailable(
            f"Hash-grid backend 'numba' runs on the CPU, the device is {device.type}. "
            "Use triton or torch."
        )
    if name == "triton" and (problem := triton_problem(_probe_triton, device)):
        raise BackendUnavailable(
            f"Hash-grid backend 'triton' cannot be used here: {problem}. "
            f"Use {'torch' if device.type == 'cuda' else 'numba or torch'}."
        )
    if name == "tcnn":
        require_tinycudann(device.type)
    return name, "requested"


def make_encode(layout: Layout, backend: BackendName, device: torch.device | str) -> Encode:
    """The encoding of a backend; raises as `resolve_backend`."""
    name, _ = resolve_backend(backend, device)
    if name == "triton":
        from dreamsa.fields.encode_triton import encode_triton  # Triton is optional

        return encode_triton(layout)
    return {"torch": encode_torch, "numba": encode_numba, "tcnn": encode_tcnn}[name](layout)


def _probe_triton(device: torch.device) -> None:
    from dreamsa.fields.encode_triton import probe

    probe(device)
