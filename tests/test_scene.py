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


def test_a_scene_of_an_earlier_version_has_sharpness_one():
    sharp, plain = small_scene(), small_scene()
    sharp.field.sharpness.fill_(8.0)
    sharp.restore({k: v for k, v in plain.tensors().items() if k != "field.sharpness"})
    assert sharp.field.sharpness.item() == 1.0
    found, expected = sharp.tensors(), plain.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_sharpness_is_saved_with_the_scene_and_rendered_with_it():
    """The opacity of a ray is 1 - exp(-sharpness * optical depth), its samples being the same."""
    soft, sharp = small_scene(min_transmittance=0.0), small_scene(min_transmittance=0.0)
    soft.refresh(0, 0, full=True)
    soft.field.sharpness.fill_(0.1)
    sharp.restore({**soft.tensors(), "field.sharpness": torch.tensor(0.3)})
    points = torch.rand(30, 3) - 0.5
    for density in (Scene.density, lambda scene, at: scene.query(at).density):
        torch.testing.assert_close(density(sharp, points), 3 * density(soft, points))
    clear, opaque = (1 - scene.view(orbit([20.0]), 16).opacity for scene in (soft, sharp))
    assert clear.min() < 0.7
    torch.testing.assert_close(opaque, clear**3, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("value", [torch.tensor(torch.nan), torch.ones(1)])
def test_a_sharpness_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="The scene's tensors"):
        small_scene().restore({**small_scene().tensors(), "field.sharpness": value})


def test_a_view_needs_no_gradient():
    assert not small_scene(background="learned").view(orbit([0.0]), 8).rgb.requires_grad
