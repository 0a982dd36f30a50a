"""Fidelity of scenes whose field is a true object."""

import json

import pytest
import torch
from true_scene import TrueScene

from dreamsa.evaluation.fidelity import fidelity_of, image_facts
from dreamsa.evaluation.views import comparable_views, true_views
from dreamsa.toybox.dataset import TOYBOX_CAMERA


def test_a_true_scene_is_nearly_perfect():
    found = fidelity_of(TrueScene("mug", "red"), TOYBOX_CAMERA, "mug", "red")
    assert found.iou > 0.97 and found.iou_min > 0.93
    assert found.depth_error < 0.01
    assert found.normal_error_deg < 10
    assert found.half_opaque == pytest.approx(found.half_opaque_true, abs=0.03)
    assert found.fog == pytest.approx(found.fog_true, abs=0.03)
    assert found.psnr > 25
    assert found.colour_error < 1
    assert (found.colour_variant, found.colour_margin) == (0, None)
    assert found.f_score > 0.99
    assert found.floaters == found.two_faced == found.turned_margin == 0
    assert found.turned is False
    assert found.lab[1] > 30
    json.dumps(found._asdict(), allow_nan=False)


def test_a_scene_rotated_by_180_degrees_is_turned():
    views = comparable_views(TrueScene("duck", turned_deg=180), TOYBOX_CAMERA)
    facts = image_facts(views, TOYBOX_CAMERA, "duck")
    assert facts["turned"] is True
    assert (facts["turned_deg"], facts["turned_margin"]) == (180, pytest.approx(1, abs=0.2))
    assert facts["iou"] < 0.8


@pytest.mark.parametrize("variant", range(3))
def test_any_natural_colour_of_a_rabbit_is_right(variant):
    views = true_views(TOYBOX_CAMERA, "rabbit", variant=variant)
    facts = image_facts(views, TOYBOX_CAMERA, "rabbit")
    assert facts["colour_variant"] == variant
    assert facts["colour_error"] == 0
    assert facts["colour_margin"] > 5
    assert facts["psnr"] == 100


def test_a_named_colour_is_the_only_valid_one():
    views = true_views(TOYBOX_CAMERA, "rabbit", "purple")
    right = image_facts(views, TOYBOX_CAMERA, "rabbit", "purple")
    wrong = image_facts(views, TOYBOX_CAMERA, "rabbit", "green")
    assert right["colour_error"] == 0
    assert wrong["colour_error"] > 30
    assert wrong["colour_margin"] is None
    assert wrong["iou"] == 1


def test_an_empty_scene_has_none_where_nothing_can_be_compared():
    scene = TrueScene("ball")
    scene.occupancy.occupied = torch.zeros_like(scene.occupancy.occupied)
    found = fidelity_of(scene, TOYBOX_CAMERA, "car")
    assert found.iou == found.f_score == 0
    names = "depth_error normal_error_deg half_opaque fog colour_error lab_l chamfer floaters"
    assert {getattr(found, name) for name in names.split()} == {None}
    assert found.lab is None
    json.dumps(found._asdict(), allow_nan=False)
