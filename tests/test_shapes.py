"""Every test run checks the shapes in signatures; see `conftest.py`."""

from typing import get_type_hints

import pytest
import torch
from jaxtyping import TypeCheckError, jaxtyped
from tiny import tiny_config

from dreamsa.guidance.noise import add_noise
from dreamsa.rendering.cameras import Cameras, orbit
from dreamsa.rendering.kernels import kernels_for
from dreamsa.rendering.volume import march, render_rays
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build
from dreamsa.train import draw_views, new_training


def test_noise_of_another_shape_is_refused():
    latents, alpha_bar = torch.zeros(2, 4, 8, 8), torch.full((2,), 0.5)
    add_noise(latents, latents, alpha_bar)
    for wrong in (latents[:, :3], latents[0], latents.long()):
        with pytest.raises(TypeCheckError, match="parameter 'noise'"):
            add_noise(latents, wrong, alpha_bar)
    with pytest.raises(TypeCheckError, match="parameter 'alpha_bar'"):
        add_noise(latents, latents, alpha_bar[:1])  # would broadcast to both views


@pytest.fixture(scope="module")
def scene():
    return new_training(tiny_config()).scene


def cast(scene, **changes):
    """Render five rays."""
    origins = torch.tensor([[1.5, 0.0, 0.0]]).expand(5, 3)
    arguments = {
        "origins": origins,
        "directions": -origins / 1.5,
        "background": torch.ones(3),
        "first": torch.full((5,), 0.5),
        **changes,
    }
    return render_rays(scene.field.query, scene.occupancy, config=scene.render_config, **arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": torch.zeros(1)},
        {"directions": torch.ones(1, 3)},
        {"background": torch.ones(1)},
        {"light": torch.ones(3)},
    ],
)
def test_another_number_of_rays_is_refused(scene, wrong):
    """The numba kernels check no bounds: they would read beyond the end of a tensor."""
    cast(scene)
    with pytest.raises(TypeCheckError, match=f"parameter '{next(iter(wrong))}'"):
        cast(scene, **wrong)


def test_cameras_are_checked_at_construction():
    one, two = orbit([0.0]), orbit([0.0, 90.0])
    with pytest.raises(TypeCheckError, match="parameter 'focal'"):
        Cameras(one.pose, two.focal, one.azimuth_deg, one.elevation_deg)


def test_named_tuples_have_the_annotated_shapes(scene):
    """The hook checks functions and dataclasses, but no named tuple."""
    rng = torch.Generator().manual_seed(0)
    rays, kernels = torch.tensor([[1.5, 0.0, 0.0]]).expand(5, 3), kernels_for(torch.device("cpu"))
    tuples = [
        scene.field.query(torch.rand(7, 3, generator=rng) - 0.5),
        march(scene.occupancy, rays, -rays / 1.5, 0.1, torch.full((5,), 0.5), kernels),
        cast(scene),
        scene.view(orbit([0.0, 90.0]), 8),
        draw_views(tiny_config(), 0, 1000),
        build("mug"),
        render_solid(build("mug"), orbit([0.0, 90.0]), 8),
    ]
    for made in tuples:
        with jaxtyped("context"):
            for name, kind in get_type_hints(type(made)).items():
                assert isinstance(getattr(made, name), kind), f"{type(made).__name__}.{name}"
