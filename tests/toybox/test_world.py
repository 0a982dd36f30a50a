import numpy as np
import pytest
import torch

from dreamsa.guidance.prompts import VIEWS
from dreamsa.render.cameras import orbit
from dreamsa.toybox.captions import HELD_OUT, WORDS, caption
from dreamsa.toybox.dataset import (
    COLOUR_NAMES,
    NAMES,
    UNTOLD,
    cached_pictures,
    grey_backgrounds,
    render_pictures,
    view_label,
    wild_backgrounds,
)
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import COLOURS, RADIUS, TOYS, build, distances


def points_in_ball(n, radius, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * radius * rng.random((n, 1)) ** (1 / 3)


def test_the_world_is_large_enough():
    assert len(TOYS) >= 20
    assert len(COLOURS) == 12
    assert len(HELD_OUT) >= 8
    assert {("purple", "rabbit"), ("ebony", "gas can")} <= HELD_OUT
    assert all(colour in COLOURS and name in TOYS for colour, name in HELD_OUT)


@pytest.mark.parametrize("name", TOYS)
def test_objects_fill_the_ball_of_radius_a_half_and_are_centred(name):
    solid = build(name)
    inside = (lambda p: p[distances(solid, p) < 0])(points_in_ball(200_000, 0.7))
    assert 0.9 * RADIUS < np.linalg.norm(inside, axis=1).max() <= RADIUS + 0.01
    assert np.abs((inside.max(0) + inside.min(0)) / 2).max() < 0.05


@pytest.mark.parametrize("name", TOYS)
def test_distances_never_overshoot(name):
    """A step of 0.85 of the distance never passes through a surface: points that far away have the same sign."""
    solid, rng = build(name), np.random.default_rng(1)
    points = points_in_ball(3000, 0.6)
    d = distances(solid, points)
    outside = d > 1e-3
    direction = rng.normal(size=(len(points), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    moved = distances(solid, points + 0.85 * d[:, None] * direction)
    assert (moved[outside] > -1e-3).mean() > 0.999


def test_primitives_equal_closed_forms():
    """Up to the 0.02 of the grid that frames an object in its ball."""
    at = np.array([[0.6, 0.0, 0.0], [0.0, 0.0, 0.55], [0.3, 0.4, 0.0]])
    np.testing.assert_allclose(distances(build("ball"), at), np.linalg.norm(at, axis=1) - 0.47, atol=0.02)
    half = 0.3 * RADIUS / (0.3 * 3**0.5 - 0.015 * (3**0.5 - 1) + 0.01)  # a rounded cube, its corner at the ball
    beside = np.hypot(0.3 - half, 0.4 - half)
    np.testing.assert_allclose(distances(build("cube"), at), [0.6 - half, 0.55 - half, beside], atol=0.02)


@pytest.mark.parametrize("name", ["ball", "cube", "rabbit", "gas can"])
def test_depth_lies_on_the_surface(name):
    cameras, solid = orbit([20.0], 25.0), build(name)
    view = render_solid(solid, cameras, 48, supersample=1)
    from dreamsa.render.cameras import camera_rays

    origins, directions = camera_rays(cameras, 48, 48)
    hit = view.opacity[0] > 0.5
    points = (origins[0] + torch.from_numpy(view.depth[0])[..., None] * directions[0]).numpy()[hit]
    assert np.abs(distances(solid, points)).max() < 2e-3


def test_a_recoloured_object_keeps_its_shape_and_its_own_parts():
    cameras = orbit([0.0], 10.0)
    white, purple = (render_solid(build("rabbit", c), cameras, 64, 0.7) for c in (None, "purple"))
    np.testing.assert_array_equal(white.opacity, purple.opacity)
    pink = lambda v: ((v.rgb[0, 0] > 0.7) & (v.rgb[0, 1] < 0.72) & (v.rgb[0, 2] < 0.78) & (v.opacity[0] > 0.9)).sum()  # noqa: E731
    assert pink(white) > 5
    assert pink(purple) > 5  # the inner ears
    body = purple.rgb[0][:, purple.opacity[0] > 0.99].mean(1)
    assert body[2] > body[1] + 0.2


def test_black_is_ebony_and_unknown_things_are_named():
    np.testing.assert_array_equal(build("mug", "black").colours, build("mug", "ebony").colours)
    with pytest.raises(ValueError, match="no 'castle'. It has: rabbit"):
        build("castle")
    with pytest.raises(ValueError, match="no colour 'mauve'"):
        build("mug", "mauve")


def test_captions():
    assert caption("gas can", "ebony", "side") == "an ebony gas can, side view"
    assert caption("apple") == "an apple"
    assert {"ebony", "black", "can", "overhead", "view"} <= set(WORDS)


def test_pictures_leave_held_out_pairs_to_the_judge():
    pairs = lambda p: {(COLOUR_NAMES[c], NAMES[n]) for n, c, _ in p.labels}  # noqa: E731
    assert not pairs(render_pictures(400, 0, resolution=8)) & HELD_OUT
    assert pairs(render_pictures(400, 0, judge=True, resolution=8)) & HELD_OUT


def test_pictures_are_reproducible_cached_and_go_on_after_an_interruption(tmp_path):
    whole = cached_pictures(tmp_path / "a", 6, seed=3, shard=2)
    (tmp_path / "b").mkdir()
    cached_pictures(tmp_path / "b", 4, seed=3, shard=2)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}
    again = cached_pictures(tmp_path / "b", 6, seed=3, shard=2)
    np.testing.assert_array_equal(whole.rgba, again.rgba)
    np.testing.assert_array_equal(whole.labels, again.labels)
    assert all((tmp_path / "b" / name).stat().st_mtime_ns == stamp for name, stamp in made.items())
    assert set(whole.labels[:, 2]) <= {UNTOLD, *range(len(VIEWS))}


@pytest.mark.parametrize(
    ("azimuth", "elevation", "label"),
    [
        *[(0, 0, "front"), (34, 0, "front"), (36, 0, None), (54, 0, None), (56, 0, "side"), (-90, 49, "side"), (200, 0, "back")],
        *[(0, 51, None), (0, 69, None), (45, 71, "overhead"), (224, 10, None)],
    ],
)
def test_a_view_is_told_only_ten_degrees_clear_of_its_borders(azimuth, elevation, label):
    assert view_label(azimuth, elevation) == (VIEWS.index(label) if label else UNTOLD)


def test_backgrounds_stand_behind_the_object(rng):
    pictures, np_rng = render_pictures(3, 1), np.random.default_rng(0)
    for backgrounds in (grey_backgrounds(3, np_rng), wild_backgrounds(3, np_rng)):
        images = pictures.over(np.arange(3), backgrounds)
        assert images.shape == (3, 3, 64, 64)
        assert images.min() >= 0
        assert images.max() <= 1
        corner = np.broadcast_to(backgrounds, (3, 64, 64, 3))[:, 0, 0]
        np.testing.assert_allclose(images[:, :, 0, 0].numpy(), corner, atol=1e-6)
