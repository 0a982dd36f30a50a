"""A configuration and a score model that make a run a matter of seconds."""

from dataclasses import replace

import torch
from analytic import GaussianMixture

from dreamsa.config import (
    DistillConfig,
    EditConfig,
    FieldConfig,
    HashGridConfig,
    RenderConfig,
    RunConfig,
)
from dreamsa.presets import preset


def tiny_config(**changes) -> RunConfig:
    """16 x 16 renders of a two-level grid, from the toybox's cameras."""
    base = preset("toybox", "a rabbit")
    grid = HashGridConfig(levels=2, log2_size=8, coarsest=4, finest=8)
    small = replace(
        base,
        steps=12,
        mesh=False,
        field=FieldConfig(grid, width=8, radius=0.6, blob_radius=0.4),
        camera=replace(base.camera, resolution=16),
        render=RenderConfig(samples=24, occupancy=8, occupancy_every=4),
        distill=DistillConfig(guidance_scale=1.0),
    )
    return replace(small, **changes)


def tiny_edit(**changes) -> RunConfig:
    """An edit whose first five steps ascend."""
    return tiny_config(**{"edit": EditConfig("parent", ascent_steps=5, scale=0.1), **changes})


def tiny_move(**changes) -> RunConfig:
    """An edit that moves towards a random scene before its first step."""
    return tiny_config(**{"edit": EditConfig("parent", eta=0.6), **changes})


def tiny_score() -> GaussianMixture:
    """Images are latents; the ideal image is a red square on grey."""
    mean = torch.full((1, 3, 16, 16), 0.5)
    mean[0, :, 5:11, 5:11] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    return GaussianMixture(mean, torch.ones(1), 0.2, alpha_bar)
