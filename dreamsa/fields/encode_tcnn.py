"""The hash encoding on a GPU by tiny-cuda-nn (optional)."""

from typing import Any

import torch
from torch import Tensor

from dreamsa.fields.layout import BackendUnavailable, Encode, Layout

BUILD_COMMANDS = (
    'pip install "setuptools<81" wheel ninja',
    'pip install --no-build-isolation "git+https://github.com/NVlabs/tiny-cuda-nn@6ee3546#subdirectory=bindings/torch"',
)
"""Commands that build tiny-cuda-nn. They need nvcc of torch's CUDA major version, g++ and git."""


def require_tinycudann(device_type: str = "cuda") -> Any:
    """The tinycudann module.

    Raises:
        BackendUnavailable: The device is not CUDA, or tinycudann is not installed or does not work.
    """
    if device_type != "cuda":
        raise BackendUnavailable(
            f"Hash-grid backend 'tcnn' needs a CUDA device, the device is {device_type}. "
            "Use numba or torch."
        )
    try:
        import tinycudann  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: installed, but it finds no GPU
        raise BackendUnavailable(
            f"Hash-grid backend 'tcnn' cannot be used here: {error}. "
            f"Build it with: {' && '.join(BUILD_COMMANDS)}"
        ) from error
    return tinycudann


def tcnn_config(layout: Layout) -> dict[str, Any]:
    """The layout in tiny-cuda-nn's terms."""
    return {
        "otype": "HashGrid",
        "n_levels": layout.config.levels,
        "n_features_per_level": layout.config.features,
        "log2_hashmap_size": layout.config.log2_size,
        "base_resolution": layout.config.coarsest,
        "per_level_scale": layout.growth,
    }


def encode_tcnn(layout: Layout) -> Encode:
    """The encoding for CUDA tensors, in float32: half-precision gradients of SDS underflow.

    Gradients are not deterministic (atomic sums).

    Raises:
        BackendUnavailable: tinycudann is not available, or uses another table layout.
    """
    tinycudann = require_tinycudann()
    encoding = tinycudann.Encoding(3, tcnn_config(layout), dtype=torch.float32)
    found, wanted = encoding.params.numel(), layout.entries * layout.config.features
    if found != wanted:
        raise BackendUnavailable(
            f"This tinycudann has a table of {found} numbers, dreamsa has {wanted}. "
            "Use the version that `dreamsa doctor` names, or backend torch."
        )
    del encoding._parameters["params"]  # the field owns the table

    def encode(points: Tensor, table: Tensor) -> Tensor:
        encoding.params = table.reshape(-1)
        return encoding(points)

    return encode
