"""The hash encoding on a GPU by tiny-cuda-nn; the only importer of tinycudann."""

from typing import Any

from torch import Tensor

from dreamsa.fields.hashgrid import BackendUnavailable, Encode, HashGridConfig

BUILD_COMMANDS = (
    'pip install "setuptools<81" wheel ninja',
    'pip install --no-build-isolation "git+https://github.com/NVlabs/tiny-cuda-nn@6ee3546#subdirectory=bindings/torch"',
)
"""Builds tiny-cuda-nn where nvcc of torch's CUDA major version, g++ and git are installed."""


def require_tinycudann(device_type: str = "cuda") -> Any:
    """The tinycudann module, or BackendUnavailable with the reason."""
    if device_type != "cuda":
        raise BackendUnavailable(f"Hash-grid backend 'tcnn' needs a CUDA device, the device is {device_type}. Use numba or torch.")
    try:
        import tinycudann  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: it is installed, finds no GPU, and raises EnvironmentError
        raise BackendUnavailable(
            f"Hash-grid backend 'tcnn' cannot be used here: {error}. Build it with: {' && '.join(BUILD_COMMANDS)}"
        ) from error
    return tinycudann


def tcnn_config(config: HashGridConfig) -> dict[str, Any]:
    """Our configuration in tiny-cuda-nn's words."""
    return {
        "otype": "HashGrid",
        "n_levels": config.levels,
        "n_features_per_level": config.features,
        "log2_hashmap_size": config.log2_size,
        "base_resolution": config.coarsest,
        "per_level_scale": config.growth,
    }


def encode_tcnn(config: HashGridConfig) -> Encode:
    """The encoding for CUDA tensors, in float32: half-precision gradients of SDS underflow. Not deterministic (atomics)."""
    import torch

    tinycudann = require_tinycudann()
    encoding = tinycudann.Encoding(3, tcnn_config(config), dtype=torch.float32)
    if encoding.params.numel() != config.entries * config.features:
        raise BackendUnavailable(
            f"This tinycudann lays its table out in {encoding.params.numel()} numbers, dreamsa in "
            f"{config.entries * config.features}. Use the version that `dreamsa doctor` names, or backend torch."
        )
    del encoding._parameters["params"]  # the field owns the table; tiny-cuda-nn reads it through `params`

    def encode(points: Tensor, table: Tensor) -> Tensor:
        encoding.params = table.reshape(-1)
        return encoding(points)

    return encode
