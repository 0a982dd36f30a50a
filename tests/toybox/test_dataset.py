import numpy as np
import pytest

from dreamsa.choices import VIEWS
from dreamsa.toybox.captions import HELD_OUT, WORDS, caption
from dreamsa.toybox.dataset import (
    AMBIGUOUS,
    COLOUR_NAMES,
    NAMES,
    cached_images,
    grey_backgrounds,
    render_images,
    view_label,
    wild_backgrounds,
)


def test_captions():
    assert caption("gas can", "ebony", "side") == "an ebony gas can, side view"
    assert caption("apple") == "an apple"
    assert {"ebony", "black", "can", "overhead", "view"} <= set(WORDS)


def test_only_the_judges_images_have_held_out_pairs():
    pairs = lambda p: {(COLOUR_NAMES[c], NAMES[n]) for n, c, _ in p.labels}  # noqa: E731
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
    assert set(complete.labels[:, 2]) <= {AMBIGUOUS, *range(len(VIEWS))}


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
