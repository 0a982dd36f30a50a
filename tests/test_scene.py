import pytest
import torch

from dreamsa import scene as scene_module
from dreamsa.config import FieldConfig, HashGridConfig, RenderConfig
from dreamsa.rendering.cameras import orbit
from dreamsa.scene import Scene

RADIUS = 0.6


def small_scene(**render):
    grid = HashGridConfig(levels=2, log2_size=8, coarsest=4, finest=8)
    config = RenderConfig(samples=24, occupancy=8, **render)
    return Scene(FieldConfig(grid, width=8, radius=RADIUS, blob_radius=0.4), config, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_scene_is_empty_beyond_each_face_of_its_cube(axis, sign):
    cell = 2 * RADIUS / 8
    points = torch.full((4, 3), 0.1)
    points[:, axis] = sign * (RADIUS + cell * torch.tensor([-0.9, -0.1, 0.1, 0.9]))
    assert (small_scene().query(points).density > 0).tolist() == [True, True, False, False]


def test_the_scene_is_empty_in_unoccupied_cells():
    scene = small_scene()
    scene.occupancy.occupied[3] = False
    x = (torch.arange(8) + 0.5) / 8 * 2 * RADIUS - RADIUS
    points = torch.stack([x, 0.1 + 0 * x, 0.1 + 0 * x], 1)
    assert (scene.query(points).density > 0).tolist() == [i != 3 for i in range(8)]


@pytest.mark.parametrize("shading", ["albedo", "lambertian"])
@pytest.mark.parametrize("background", ["random", "learned"])
def test_views_in_chunks_of_rays_are_those_of_all_rays(monkeypatch, background, shading):
    scene, cameras = small_scene(background=background, shading=shading), orbit([0.0, 130.0])
    expected = scene.view(cameras, 16)
    monkeypatch.setattr(scene_module, "RAY_CHUNK", 100)  # does not divide 16 x 16
    found = scene.view(cameras, 16)
    assert found.rgb.shape == (2, 3, 16, 16)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_memory_of_a_view_does_not_grow_with_its_resolution(monkeypatch):
    """The field evaluates at most the samples of one chunk of rays at a time."""
    scene, sizes = small_scene(), []
    query = scene.field.query
    monkeypatch.setattr(scene_module, "RAY_CHUNK", 64)
    monkeypatch.setattr(
        scene.field,
        "query",
        lambda points, *args: sizes.append(len(points)) or query(points, *args),
    )
    image = scene.view(orbit([20.0]), 32)
    assert max(sizes) <= 64 * 24
    assert image.samples > 4 * max(sizes)


def test_a_view_needs_no_gradient():
    assert not small_scene(background="learned").view(orbit([0.0]), 8).rgb.requires_grad
