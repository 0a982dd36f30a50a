import numpy as np

from dreamsa.rendering.cameras import orbit
from dreamsa.toybox.captions import LOOK_ALIKE
from dreamsa.toybox.dataset import AMBIGUOUS, NAMES, ImageSet
from dreamsa.toybox.dual_encoder import _shifted, draw_weights, random_captions, targets_of
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build


def test_ambiguous_views_are_no_targets():
    """Cross-entropy ignores -100; objects and colours are always targets."""
    labels = np.array(
        [(name, 5, view) for name in range(len(NAMES)) for view in (AMBIGUOUS, 0, 1, 2, 3)],
        np.int16,
    )
    views = targets_of(labels, 2)
    ambiguous = np.array(
        [NAMES[name] in LOOK_ALIKE or view == AMBIGUOUS for name, _, view in labels]
    )
    assert 0 < ambiguous.sum() < len(ambiguous)
    assert (views[ambiguous] == -100).all()
    np.testing.assert_array_equal(views[~ambiguous], labels[~ambiguous, 2])
    for kind in (0, 1):
        np.testing.assert_array_equal(targets_of(labels, kind), labels[:, kind])


def test_shifted_images_are_crops_of_the_padded_image_or_their_mirror_images():
    images = np.random.default_rng(0).integers(1, 256, (40, 8, 8, 4), np.uint8)
    labels = np.array([(NAMES.index("duck"), 0, 0)] * 40, np.int16)
    moved = _shifted(ImageSet(images, labels), np.random.default_rng(1), max_shift=2).rgba
    found = []
    for before, after in zip(np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), moved, strict=True):
        cuts = {(y, x): before[y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
        matches = [
            (at, mirrored)
            for at, cut in cuts.items()
            for mirrored in (False, True)
            if (after == (cut[:, ::-1] if mirrored else cut)).all()
        ]
        assert len(matches) == 1
        found += matches
    assert {mirrored for _, mirrored in found} == {False, True}
    assert len({at for at, _ in found}) > 10
    np.testing.assert_array_equal(
        moved, _shifted(ImageSet(images, labels), np.random.default_rng(1), max_shift=2).rgba
    )


def test_mugs_are_not_mirrored_as_their_mirror_image_shows_the_back():
    front, back = (
        render_solid(build("mug", "red"), orbit([azimuth], 20.0)).opacity[0] > 0.5
        for azimuth in (0.0, 180.0)
    )

    def overlap(a, b):
        return (a & b).sum() / (a | b).sum()

    assert overlap(front[:, ::-1], back) > 0.97 > overlap(front, back)
    images = np.random.default_rng(0).integers(1, 256, (20, 8, 8, 4), np.uint8)
    mugs = ImageSet(images, np.array([(NAMES.index("mug"), 0, 0)] * 20, np.int16))
    np.testing.assert_array_equal(
        _shifted(mugs, np.random.default_rng(1), max_shift=0).rgba, images
    )


def test_captions_name_no_ambiguous_view():
    labels = np.array([(NAMES.index("duck"), 1, view) for view in (AMBIGUOUS, 0)] * 100, np.int16)
    texts = random_captions(labels, np.random.default_rng(0))
    assert not any("view" in text for text in texts[::2])
    assert 70 < sum("front view" in text for text in texts[1::2]) < 100


def test_objects_with_a_front_are_drawn_twice_as_often():
    weights = draw_weights(
        np.array([(NAMES.index(name), 0, 0) for name in ("duck", "ball", "ball")], np.int16)
    )
    np.testing.assert_allclose(weights, [0.5, 0.25, 0.25])
