"""A configuration and a score model that make a run a matter of seconds."""

from dataclasses import replace

import torch

from dreamsa.config import EditConfig, RunConfig, preset
from dreamsa.fields.field import FieldConfig
from dreamsa.fields.hashgrid import HashGridConfig
from dreamsa.guidance.analytic import GaussianMixture
from dreamsa.render.volume import RenderConfig
from dreamsa.sds import SDSConfig


def tiny_config(**changes) -> RunConfig:
    """A 16 x 16 picture of a two-level grid; the toybox' cameras."""
    base = preset("toybox", "a rabbit")
    small = replace(
        base,
        steps=12,
        field=FieldConfig(HashGridConfig(levels=2, log2_size=8, coarsest=4, finest=8), hidden=8, radius=0.6, blob_radius=0.4),
        camera=replace(base.camera, resolution=16),
        render=RenderConfig(samples=24, occupancy=8, occupancy_every=4),
        sds=SDSConfig(guidance_scale=1.0),
    )
    return replace(small, **changes)


def tiny_edit(**changes) -> RunConfig:
    """An edit that ascends in its first five steps."""
    return tiny_config(**{"edit": EditConfig("parent", ascent_steps=5, scale=0.1), **changes})


def tiny_auto(**changes) -> RunConfig:
    """An edit that decides after two steps."""
    return tiny_config(**{"edit": EditConfig("parent", "auto", parent_prompt="a duck"), **changes})


def tiny_repair(**changes) -> RunConfig:
    """An edit to the parent's own prompt."""
    return tiny_auto(**{"edit": EditConfig("parent", "auto", parent_prompt="a rabbit"), **changes})


def tiny_score() -> GaussianMixture:
    """Pictures are latents; the ideal picture is a red square on grey."""
    mean = torch.full((1, 3, 16, 16), 0.5)
    mean[0, :, 5:11, 5:11] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    return GaussianMixture(mean, torch.ones(1), 0.2, alpha_bar)
