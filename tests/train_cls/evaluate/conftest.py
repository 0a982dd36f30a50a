"""Tests of train_cls.evaluate check the shapes and types of its annotated functions."""
# ruff: noqa: E402  (the hook precedes the imports that it checks)

from jaxtyping import install_import_hook

install_import_hook(
    "train_cls.evaluate", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

import pytest
import torch
from tiny_model import TinyModel


@pytest.fixture
def model(rng) -> TinyModel:
    """Random weights, batch-norm statistics and affine parameters."""
    model = TinyModel()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand(tensor.shape, generator=rng) + 0.1
                    if tensor.ndim == 1
                    else torch.randn(tensor.shape, generator=rng) / 3
                )
    return model


@pytest.fixture
def images(rng) -> torch.Tensor:
    return torch.randint(0, 256, (120, 3, 6, 6), generator=rng, dtype=torch.uint8)
