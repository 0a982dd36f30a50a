"""Scenes that stand on their parent's: what is kept is the parent's, bit for bit."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_score

from dreamsa import api, job
from dreamsa import scene as scene_module
from dreamsa.config import (
    DistillConfig,
    EditConfig,
    FreeConfig,
    LossConfig,
    edited,
    from_json,
    parse_regions,
    to_json,
)
from dreamsa.fields.field import Sample
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.keeping import (
    blend,
    box_distance,
    cell_distance,
    interpolated,
    region_distance,
    sphere_distance,
    weight_at,
)
from dreamsa.meshing.asset import make_asset
from dreamsa.outputs import kept_beneath, load_scene
from dreamsa.randomness import generator_for
from dreamsa.rendering.cameras import camera_rays, orbit
from dreamsa.rendering.occupancy import cell_centres
from dreamsa.scene import Scene
from dreamsa.train import decorrelation, identity_loss, new_training, sds_step

SPHERE = FreeConfig(spheres=((0.0, 0.0, 0.4, 0.2),), grow=0.05)
BOX = FreeConfig(boxes=((-0.6, -0.6, 0.1, 0.6, 0.6, 0.6),))
DDS = DistillConfig("dds", guidance_scale=1.0)
UP = torch.tensor([[0.0, 0.0, 1.0]])


def steps(training, count):
    score = tiny_score()
    prompt = ViewPrompt(score, training.config.prompt)
    return [sds_step(training, score, prompt) for _ in range(count)]


def a_parent(**changes):
    training = new_training(tiny_config(steps=40, **changes))
    steps(training, 20)
    return training


def child_of(parent, free, count=8, prompt="a purple rabbit", **numbers):
    edit = EditConfig("parent", free=free, **numbers)
    training = new_training(edited(parent.config, prompt, edit, 40))
    training.scene.begin_from(parent.scene, 0)
    steps(training, count)
    return training


@pytest.fixture(autouse=True)
def short_fit(monkeypatch):
    monkeypatch.setattr(scene_module, "IMITATION_STEPS", 10)


@pytest.fixture(scope="module")
def parent():
    return a_parent()


def points(count=100_000, radius=0.7):
    return (torch.rand(count, 3, generator=generator_for(0, 0, "points")) * 2 - 1) * radius


@torch.no_grad()
def queried(scene, at):
    return scene.query(at, UP.expand_as(at))


def hits(distance, cameras, size=24):
    """Whether any point along each pixel's ray is nearer than 0."""
    origins, directions = (value.reshape(-1, 3) for value in camera_rays(cameras, size, size))
    t = torch.linspace(0, 3, 600)[:, None, None]
    along = (origins + t * directions).reshape(-1, 3)
    near = (distance(along) <= 0).view(600, -1).any(0)
    return near.view(len(cameras), size, size)


def test_distances_to_a_box_and_a_sphere_are_exact():
    at = torch.tensor([[0.0, 0, 0], [2, 0, 0], [2, 3, 0], [0.9, 0, 0], [0, 0, -1.0]])
    box = box_distance(at, (-1, -1, -1, 1, 1, 1))
    torch.testing.assert_close(box, torch.tensor([-1, 1, 5**0.5, -0.1, 0]))
    sphere = sphere_distance(at, (0, 0, 1, 2))
    expected = torch.tensor([1, 5**0.5, 14**0.5, 1.81**0.5, 2]) - 2
    torch.testing.assert_close(sphere, expected)


def test_a_region_is_the_union_of_its_shapes_and_can_be_inverted():
    free = FreeConfig(boxes=((0, 0, 0, 1, 1, 1),), spheres=((-0.5, 0, 0, 0.2),))
    at = torch.tensor([[0.5, 0.5, 0.5], [-0.5, 0, 0], [-0.5, 0, 0.5]])
    distance = region_distance(free, at)
    assert (distance < 0).tolist() == [True, True, False]
    assert torch.equal(region_distance(replace(free, outside=True), at), -distance)


def test_the_margin_falls_smoothly_from_one_to_zero():
    weights = weight_at(torch.tensor([-1.0, 0, 0.05, 0.1, 0.2]), grow=0.1)
    torch.testing.assert_close(weights, torch.tensor([1, 1, 0.5, 0, 0]))
    assert weight_at(torch.tensor([-1e-9, 0, 1e-9]), grow=0).tolist() == [1, 1, 0]


def test_cells_have_signed_distances_that_interpolate_between_centres():
    centres = cell_centres(16, 1.0)
    cells = (centres[:, 2] > 0).view(16, 16, 16).numpy()
    volume = torch.from_numpy(cell_distance(cells, 1.0))
    at = points(500, radius=0.9)
    torch.testing.assert_close(interpolated(volume, 1.0, at), -at[:, 2], atol=1e-5, rtol=0)
    assert cell_distance(np.zeros((4, 4, 4), bool), 1.0).min() > 2


def test_media_are_mixed_by_what_they_contribute():
    below = Sample(torch.tensor([2.0, 2.0, 2.0, 0.0]), torch.zeros(4, 3))
    above = Sample(torch.tensor([6.0, 6.0, 6.0, 0.0]), torch.ones(4, 3))
    weight = torch.tensor([0.0, 0.5, 1.0, 0.5])
    mixed = blend(below, above, weight, FreeConfig(spheres=((0, 0, 0, 1),)))
    assert mixed.density.tolist() == [2, 4, 6, 0]
    assert mixed.rgb[:, 0].tolist() == [0, 0.75, 1, 0.5]
    shape = blend(below, above, weight, FreeConfig("shape"))
    assert shape.density.tolist() == [2, 2, 2, 0]
    assert shape.rgb[:, 0].tolist() == [0, 0.5, 1, 0.5]
    colour = blend(below, above, weight, FreeConfig("colour"))
    assert colour.density.tolist() == [2, 4, 6, 0]
    assert torch.equal(colour.rgb, below.rgb)


@pytest.mark.parametrize("count", [1, 2, 3, 63, 65, 8193])
def test_a_point_has_the_same_bits_whatever_else_is_asked(parent, count):
    at, chosen = points(20_000, 0.6), torch.randperm(20_000)[:count]
    with torch.no_grad():
        every, some = parent.scene.field.query(at), parent.scene.field.query(at[chosen])
    assert torch.equal(some.density, every.density[chosen])
    assert torch.equal(some.rgb, every.rgb[chosen])


@pytest.mark.parametrize(
    "free", [SPHERE, BOX, replace(SPHERE, outside=True), replace(BOX, keep="shape")]
)
def test_outside_of_the_region_the_scene_is_the_parents_to_the_bit(parent, free):
    child = child_of(parent, free, eta=0.6)
    at = points()
    before, after = queried(parent.scene, at), queried(child.scene, at)
    outside = child.scene.below.weight(at) == 0
    assert 0.004 < outside.float().mean() < 0.99
    assert torch.equal(before.density[outside], after.density[outside])
    assert torch.equal(before.rgb[outside], after.rgb[outside])
    assert not torch.equal(before.rgb, after.rgb)
    assert torch.equal(before.density, after.density) == (free.keep == "shape")


@pytest.mark.parametrize("free", [SPHERE, BOX])
@pytest.mark.parametrize("background", [None, 0.3])
def test_rays_that_miss_the_region_are_the_parents_to_the_bit(parent, free, background):
    child = child_of(parent, free, eta=0.6)
    cameras = orbit([0.0, 70.0, 200.0])
    before, after = (one.scene.view(cameras, 24, background) for one in (parent, child))
    miss = ~hits(lambda at: region_distance(free, at) - free.grow - 0.01, cameras)
    assert 0.05 < miss.float().mean() < 0.95
    for name in ("rgb", "opacity", "depth"):
        old, new = getattr(before, name), getattr(after, name)
        kept = miss[:, None].expand_as(old) if name == "rgb" else miss
        assert torch.equal(old[kept], new[kept])
        assert not torch.equal(old, new)


def test_keeping_the_shape_keeps_density_opacity_and_mesh(parent):
    child = child_of(parent, FreeConfig("shape"), eta=0.6)
    at, cameras = points(), orbit([0.0, 120.0])
    assert torch.equal(queried(parent.scene, at).density, queried(child.scene, at).density)
    before, after = parent.scene.view(cameras, 24), child.scene.view(cameras, 24)
    assert torch.equal(before.opacity, after.opacity)
    assert torch.equal(before.depth, after.depth)
    assert (before.rgb - after.rgb).abs().max() > 0.05
    meshes = [
        make_asset(one.scene.query, *one.scene.box(), resolution=24, faces=None, colour="none")
        for one in (parent, child)
    ]
    assert np.array_equal(meshes[0].surface.vertices, meshes[1].surface.vertices)


@pytest.mark.parametrize("grown", [False, True])
def test_vertices_outside_of_the_region_are_those_of_the_parents_mesh(grown):
    """Before decimation; on a continued lattice if the edit reaches beyond the parent's."""
    field = replace(tiny_config().field, blob_density=400.0, blob_radius=0.3)
    parent = a_parent(field=field)
    box = (-0.6, -0.6, 0.15, 0.6, 0.6, 0.6)
    child = child_of(parent, FreeConfig(boxes=(box,)), count=1)
    with torch.no_grad():
        child.scene.field.out.bias[0] += 200.0 if grown else -200.0
    child.scene.refresh(0, 1, full=True)
    size = {"resolution": 40, "faces": None, "colour": "none"}
    old, new = (
        make_asset(s.query, *s.box(), **size, beneath=kept_beneath(s)).surface.vertices
        for s in (parent.scene, child.scene)
    )
    cell = (parent.scene.box()[1] - parent.scene.box()[0]).max() / 40
    below = [rows[rows[:, 2] < 0.15 - 2 * cell] for rows in (old, new)]
    assert len(below[0]) == len(below[1]) > 100
    ordered = [rows[np.lexsort(np.round(rows, 5).T)] for rows in below]
    np.testing.assert_allclose(ordered[0], ordered[1], atol=1e-6 if grown else 0)
    assert (new[:, 2].max() > old[:, 2].max() + cell) == grown


def test_keeping_the_colour_keeps_every_colour(parent):
    child = child_of(parent, FreeConfig("colour"), eta=0.6)
    at = points(20_000, 0.6)
    with torch.no_grad():
        before, after = (s.radiance(at, UP.expand_as(at)) for s in (parent.scene, child.scene))
    assert torch.equal(before.rgb, after.rgb)
    assert not torch.equal(before.density, after.density)


def test_a_kept_shape_is_trained_as_it_is_rendered(parent):
    """A step's colours are those of all samples, but for what hardly shows."""
    child = child_of(parent, FreeConfig("shape"))
    from dreamsa.rendering.volume import render

    scene, config, grey = child.scene, child.config, torch.full((3,), 0.5)
    cameras = orbit([30.0, 250.0])
    query, occupancy = scene.drawn()
    drawn = render(query, occupancy, cameras, 16, config.render, grey,
                   density_fn=scene.density, frozen=True)  # fmt: skip
    torch.testing.assert_close(drawn.rgb, scene.view(cameras, 16, 0.5).rgb, atol=0.03, rtol=0)
    drawn.rgb.sum().backward()
    assert scene.field.table.grad.abs().max() > 0
    assert all(p.grad is None for p in scene.below.parameters())


def test_a_child_of_a_child_keeps_both(parent):
    child = child_of(parent, BOX, eta=0.6)
    grandchild = child_of(child, replace(SPHERE, keep="shape"), eta=0.6)
    assert grandchild.config.layers == (BOX, replace(SPHERE, keep="shape"))
    at = points()
    first, second, third = (queried(one.scene, at) for one in (parent, child, grandchild))
    outside = grandchild.scene.below.weight(at) == 0
    assert torch.equal(second.density, third.density)
    assert torch.equal(second.rgb[outside], third.rgb[outside])
    below = outside & (region_distance(BOX, at) > 0)
    assert torch.equal(first.rgb[below], third.rgb[below])
    other = Scene(grandchild.config.field, grandchild.config.render, 5,
                  layers=grandchild.config.layers)  # fmt: skip
    other.restore(grandchild.scene.tensors())
    fourth = queried(other, at)
    assert torch.equal(third.density, fourth.density)
    assert torch.equal(third.rgb, fourth.rgb)


def test_an_edit_of_everything_starts_from_all_that_its_parent_is_made_of(parent, monkeypatch):
    """Its single field is fitted to the parent's two."""
    monkeypatch.setattr(scene_module, "IMITATION_STEPS", 120)
    child = child_of(parent, replace(SPHERE, spheres=((0, 0, 0, 0.2),)), 20, eta=0.6)
    flat = child_of(child, None, count=0)
    assert flat.scene.below is None
    cameras = orbit([0.0, 90.0, 200.0])
    wanted, found = child.scene.view(cameras, 24), flat.scene.view(cameras, 24)
    uppermost = Scene(flat.config.field, flat.config.render, 0)
    uppermost.field.load_state_dict(child.scene.field.state_dict())
    error, naive = (
        (wanted.rgb - one.rgb).square().mean() for one in (found, uppermost.view(cameras, 24))
    )
    assert error < 2e-3
    assert error < 0.3 * naive


def test_a_region_that_no_view_shows_leaves_the_scene_alone(parent):
    free = FreeConfig(spheres=((0.59, 0.59, 0.59, 0.005),))
    child = child_of(parent, free, count=2)
    assert not any(result.skipped for result in steps(child, 2))


def test_words_are_numbers_and_numbers_words():
    words = ["box:-0.1,0,0.1,0.2,0.3,0.4", "sphere:0,0,0.3,0.2"]
    free = FreeConfig("colour", grow=0.05, outside=True, **parse_regions(words))
    assert list(free.regions) == words
    assert free.words == (
        "--keep colour --region box:-0.1,0,0.1,0.2,0.3,0.4 --region sphere:0,0,0.3,0.2 "
        "--grow 0.05 --outside"
    )
    config = tiny_config(edit=EditConfig("parent", free=free, beneath=(FreeConfig("shape"),)))
    assert from_json(to_json(config)) == config
    assert FreeConfig(**parse_regions(["auto"])).regions == ("auto",)


def test_decorrelation_is_one_minus_pearsons_correlation():
    one = torch.tensor([1.0, 2, 3, 4])
    assert decorrelation(one, 3 * one + 5) == pytest.approx(0, abs=1e-6)
    assert decorrelation(one, -one) == pytest.approx(2)
    assert decorrelation(one, torch.tensor([2.0, 1, 1, 2])) == pytest.approx(1)
    assert decorrelation(one, torch.ones(4)) == 1


@pytest.mark.parametrize("changes", [{"distill": DDS}, {"loss": LossConfig(correlation=50.0)}])
def test_an_edit_that_is_compared_with_its_parent_resumes_exactly(parent, tmp_path, changes):
    def child():
        training = new_training(replace(edit, **changes))
        training.scene.begin_from(parent.scene, 0)
        return training

    edit = edited(parent.config, "a purple rabbit", EditConfig("parent", eta=0.6), 8)
    whole, first, second = child(), child(), new_training(replace(edit, **changes))
    assert not any(result.skipped for result in steps(whole, 8))
    steps(first, 4)
    second.load(first.save(tmp_path))
    steps(second, 4)
    ends = [training.scene.tensors() for training in (whole, second)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    at = points(5000)
    before, below = queried(parent.scene, at), queried(whole.scene.beneath(), at)
    assert torch.equal(before.density, below.density)
    assert not torch.equal(before.density, queried(whole.scene, at).density)


def test_correlation_draws_the_density_back_to_the_parents(parent):
    """As Vox-E's term is for, alone and from a displaced field."""
    config = edited(parent.config, "a purple rabbit", EditConfig("parent"), 40)
    config = replace(config, loss=LossConfig(correlation=50.0))
    training = new_training(config)
    scene = training.scene
    scene.begin_from(parent.scene, 0)
    with torch.no_grad():
        noise = torch.randn(scene.field.table.shape, generator=generator_for(0, 0, "noise"))
        scene.field.table += 3 * noise
    losses = []
    for step in range(40):
        loss = identity_loss(config, scene, step)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.01
    assert min(losses[-5:]) < 0.7 * losses[0]
    assert identity_loss(replace(config, loss=LossConfig()), scene, 0) == 0


def test_methods_that_need_a_parent_are_refused_without_one():
    for changes in ({"distill": DDS}, {"loss": LossConfig(correlation=50.0)}):
        with pytest.raises(ValueError, match="compares an edit with its parent"):
            tiny_config(**changes)


WRONG = [
    ({"region": "box:0,0,0,1,1,-1"}, "first corner must be below its second"),
    ({"region": "box:0,0,0,1,1"}, "A region is box:"),
    ({"region": "cube:0,0,0,1"}, "A region is box:"),
    ({"region": "sphere:0,0,0,0"}, "radius must be above 0"),
    ({"region": ["auto", "sphere:0,0,0,1"]}, "auto stands alone"),
    ({"region": "box:2,2,2,3,3,3"}, "leaves nothing free: the scene is the cube"),
    ({"region": "sphere:0.58,0.58,0.58,0.03"}, "holds nothing of the object"),
    ({"region": "sphere:0,0,0,5", "outside": True}, "the region fills the scene"),
    ({"region": "sphere:0,0,0,0.5", "outside": True, "keep": "shape"}, "holds nothing"),
    ({"grow": 0.1}, "grow needs a region"),
    ({"outside": True}, "outside needs a region"),
    ({"keep": "both"}, "keep must be 'shape' or 'colour'"),
    ({"keep": "shape", "moments": "keep"}, "edit.moments = keep needs an edit that may change"),
    ({"keep": "shape", "overrides": {"field.width": 16}}, "whose field.width is 8, not 16"),
    ({"overrides": {"field.radius": 1.0}}, "whose field.radius is 0.6, not 1.0"),
    ({"keep": "shape", "overrides": {"render.occupancy": 16}}, "whose render.occupancy is 8"),
    ({"keep": "shape", "overrides": {"render.background": "learned"}}, "a fixed background"),
    ({"strength": 1.5}, r"strength must lie in \[0, 1\]"),
    ({"strength": 0.5, "eta": 0.5}, "strength sets eta"),
]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(job, "write_outputs", lambda run, scene, frames=8, resolution=16: [])
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)
    monkeypatch.setattr(job, "write_changes", lambda run, before, after: {})


@pytest.mark.usefixtures("quick")
def test_wrong_regions_are_refused_before_anything_is_created(tmp_path):
    field = replace(tiny_config().field, blob_density=400.0, blob_radius=0.3)
    run = api.generate(config=tiny_config(field=field, steps=2), runs=tmp_path).wait()
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, message in WRONG:
        with pytest.raises(ValueError, match=message):
            api.edit(run, "a purple rabbit", runs=tmp_path, **arguments)
    with pytest.raises(ValueError, match="the new prompt is the parent's: 'A rabbit'"):
        api.edit(run, "A rabbit", region="auto", runs=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("arguments", [{"keep": "shape"}, {"region": "sphere:0,0,0.2,0.2"}])
def test_a_kept_edit_resumes_exactly_and_outlives_its_parent(tmp_path, arguments):
    parent = api.generate(config=tiny_config(), runs=tmp_path).wait()
    whole = api.edit(parent, "a purple rabbit", steps=9, runs=tmp_path, **arguments).wait()
    running = api.edit(parent, "a purple rabbit", steps=9, runs=tmp_path, **arguments)
    old = load_scene(parent, "cpu")
    for progress in running:
        if progress.step == 1:
            shutil.rmtree(parent.path)  # before the first periodic checkpoint
        if progress.step == 4:
            break
    running.stop()
    resumed = api.resume(running.run, runs=tmp_path).wait()
    scenes = [
        (run.latest_checkpoint / "scene.safetensors").read_bytes() for run in (whole, resumed)
    ]
    assert scenes[0] == scenes[1]
    at = points(5000)
    new = load_scene(resumed, "cpu")
    kept = new.below.weight(at) == 0
    before, after = queried(old, at), queried(new, at)
    assert torch.equal(before.density[kept], after.density[kept])
    assert torch.equal(before.rgb[kept], after.rgb[kept])
    grandchild = api.edit(resumed, "a blue mug", steps=3, keep="shape", runs=tmp_path).wait()
    assert torch.equal(queried(load_scene(grandchild, "cpu"), at).density, after.density)


@pytest.mark.usefixtures("quick")
def test_strength_sets_eta_and_steps(tmp_path):
    run = api.generate(config=tiny_config(steps=2), runs=tmp_path).wait()
    pairs = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        job_ = api.edit(run, "a purple rabbit", strength=strength, runs=tmp_path)
        config = job_.run.config
        pairs.append((config.edit.eta, config.steps))
    assert pairs == [(0.0, 188), (0.3, 469), (0.6, 750), (1.0, 1125)]
