import numpy as np
import pytest
import torch

from dreamsa.choices import VIEWS
from dreamsa.randomness import seed_for
from dreamsa.rendering.cameras import sample_cameras
from dreamsa.toybox.captions import HELD_OUT, WORDS, caption
from dreamsa.toybox.dataset import (
    AMBIGUOUS,
    COLOUR_NAMES,
    NAMES,
    TOYBOX_CAMERA,
    azimuth_label,
    cached_images,
    grey_backgrounds,
    render_images,
    view_label,
    wild_backgrounds,
)


def test_captions():
    assert caption("gas can", "ebony", "side") == "an ebony gas can, side view"
    assert caption("apple") == "an apple"
    text = "a red car, side view, azimuth 105, elevation +15"
    assert caption("car", "red", angles=(105, 15)) == text
    assert caption("cube", angles=(0, 75)) == "a cube, overhead view, azimuth 000, elevation +75"
    assert caption("mug", angles=(0, 0)) == "a mug, front view, azimuth 000, elevation +00"
    assert {"ebony", "black", "can", "overhead", "view", "azimuth", "elevation"} <= set(WORDS)


def test_only_the_judges_images_have_held_out_pairs():
    pairs = lambda p: {(COLOUR_NAMES[c], NAMES[n]) for n, c, *_ in p.labels}  # noqa: E731
    assert not pairs(render_images(400, 0, resolution=8)) & HELD_OUT
    assert pairs(render_images(400, 0, judge=True, resolution=8)) & HELD_OUT


def test_images_are_reproducible_cached_and_resumed(tmp_path):
    complete = cached_images(tmp_path / "a", 6, seed=3, shard=2)
    (tmp_path / "b").mkdir()
    cached_images(tmp_path / "b", 4, seed=3, shard=2)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}
    again = cached_images(tmp_path / "b", 6, seed=3, shard=2)
    np.testing.assert_array_equal(complete.rgba, again.rgba)
    np.testing.assert_array_equal(complete.labels, again.labels)
    assert all((tmp_path / "b" / name).stat().st_mtime_ns == stamp for name, stamp in made.items())


def test_images_do_not_depend_on_the_number_of_processes(tmp_path):
    one = cached_images(tmp_path / "one", 3, seed=3, shard=2)
    two = cached_images(tmp_path / "two", 3, seed=3, shard=2, workers=2)
    np.testing.assert_array_equal(one.rgba, two.rgba)
    np.testing.assert_array_equal(one.labels, two.labels)


def test_labels_hold_the_angles_of_the_cameras():
    labels = render_images(12, 7, resolution=4).labels
    rng = torch.Generator().manual_seed(seed_for(7, 1, "pictures"))
    cameras = [sample_cameras(TOYBOX_CAMERA, rng) for _ in range(12)]
    angles = [[float(camera.azimuth_deg), float(camera.elevation_deg)] for camera in cameras]
    np.testing.assert_array_equal(labels[:, 2:], np.round(angles))


def test_steep_cameras_have_no_azimuth():
    azimuths = [azimuth_label(azimuth, 69) for azimuth in (0, 7, 8, 105, 352, 353, 360)]
    assert azimuths == [0, 0, 1, 7, 23, 0, 0]
    assert azimuth_label(105, 70) == AMBIGUOUS


@pytest.mark.parametrize(
    ("azimuth", "elevation", "label"),
    [
        *[
            (0, 0, "front"),
            (34, 0, "front"),
            (36, 0, None),
            (54, 0, None),
            (56, 0, "side"),
            (-90, 49, "side"),
            (200, 0, "back"),
        ],
        *[(0, 51, None), (0, 69, None), (45, 71, "overhead"), (224, 10, None)],
    ],
)
def test_a_view_is_ambiguous_within_ten_degrees_of_its_borders(azimuth, elevation, label):
    assert view_label(azimuth, elevation) == (VIEWS.index(label) if label else AMBIGUOUS)


def test_images_are_composited_over_backgrounds(rng):
    dataset, np_rng = render_images(3, 1), np.random.default_rng(0)
    for backgrounds in (grey_backgrounds(3, np_rng), wild_backgrounds(3, np_rng)):
        images = dataset.over(np.arange(3), backgrounds)
        assert images.shape == (3, 3, 64, 64)
        assert images.min() >= 0
        assert images.max() <= 1
        corner = np.broadcast_to(backgrounds, (3, 64, 64, 3))[:, 0, 0]
        np.testing.assert_allclose(images[:, :, 0, 0].numpy(), corner, atol=1e-6)
