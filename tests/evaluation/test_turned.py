"""Views of true objects in other orientations."""

import pytest
import torch

from dreamsa.evaluation.turned import channels, rotation_errors, turn_of, two_faced
from dreamsa.evaluation.views import FLAT, true_views
from dreamsa.toybox.dataset import TOYBOX_CAMERA


def true(name, light=None):
    return true_views(TOYBOX_CAMERA, name, **({"light": light} if light else {}))


def rotated(views, steps):
    """The views of an object that is rotated by steps of 45 degrees."""
    rolled = (value.roll(steps, 0) for value in views[:3])
    return views._replace(**dict(zip(views._fields, rolled, strict=False)))


def turn(name, steps):
    return turn_of(rotated(true(name), steps), true(name), true(name, FLAT))


@pytest.mark.parametrize("steps", [0, 1, 4, 6])
def test_a_rotated_object_is_found_with_its_angle(steps):
    found = turn("rabbit", steps)
    assert found == (steps > 0, 45.0 * steps, pytest.approx(1.0 if steps else 0.0))


@pytest.mark.parametrize("name", ["ball", "tree", "donut"])
def test_objects_that_look_alike_from_all_sides_are_never_turned(name):
    assert not any(turn(name, steps).turned for steps in range(8))


def test_a_table_has_two_equal_ends():
    assert not turn("table", 4).turned
    assert turn("table", 2).turned


@pytest.mark.parametrize("name", ["mug", "house", "rocket"])
def test_no_true_object_is_turned(name):
    assert not turn(name, 0).turned


def test_a_shape_that_fits_no_orientation_is_not_turned():
    ball = true("ball")
    assert not turn_of(ball, true("rabbit"), true("rabbit", FLAT)).turned


def test_rotation_errors_by_hand():
    images = torch.zeros(4, 4, 1, 1)
    images[1] = 1
    assert rotation_errors(images.roll(2, 0), images).tolist() == [0.5, 0.5, 0, 0.5]


def test_two_faces_are_a_front_on_every_side():
    truth, flat = true("rabbit"), true("rabbit", FLAT)
    fronts = truth._replace(rgb=truth.rgb[:1].expand(8, -1, -1, -1))
    fronts = fronts._replace(opacity=truth.opacity[:1].expand(8, -1, -1))
    assert two_faced(truth, truth, flat) == 0
    assert two_faced(fronts, truth, flat) == 1
    assert two_faced(true("ball"), true("ball"), true("ball", FLAT)) is None


def test_channels_are_colour_and_opacity():
    assert channels(true("ball")).shape == (8, 4, 64, 64)
