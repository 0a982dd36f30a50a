import numpy as np
import pytest
import torch

from dreamsa.rendering.cameras import camera_rays, orbit
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build, distances


@pytest.mark.parametrize("name", ["ball", "cube", "rabbit", "gas can"])
def test_depth_lies_on_the_surface(name):
    cameras, solid = orbit([20.0], 25.0), build(name)
    view = render_solid(solid, cameras, 48, supersample=1)
    origins, directions = camera_rays(cameras, 48, 48)
    hit = view.opacity[0] > 0.5
    points = (origins[0] + torch.from_numpy(view.depth[0])[..., None] * directions[0]).numpy()[hit]
    assert np.abs(distances(solid, points)).max() < 2e-3


def test_a_recoloured_object_keeps_its_shape_and_its_own_parts():
    cameras = orbit([0.0], 10.0)
    white, purple = (render_solid(build("rabbit", c), cameras, 64, 0.7) for c in (None, "purple"))
    np.testing.assert_array_equal(white.opacity, purple.opacity)

    def pink(render):
        red, green, blue = render.rgb[0]
        return ((red > 0.7) & (green < 0.72) & (blue < 0.78) & (render.opacity[0] > 0.9)).sum()

    assert pink(white) > 5
    assert pink(purple) > 5  # the inner ears
    body = purple.rgb[0][:, purple.opacity[0] > 0.99].mean(1)
    assert body[2] > body[1] + 0.2
