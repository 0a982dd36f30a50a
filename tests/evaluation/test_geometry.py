"""Shape of scenes that are known: true objects, and billboards."""

import pytest
import torch
from true_scene import TrueScene

from dreamsa.evaluation.geometry import geometry_of, normal_error, surface_normals
from dreamsa.evaluation.views import AZIMUTHS, QUARTERS, Views, fixed_cameras
from dreamsa.rendering.cameras import orbit
from dreamsa.scene import Scene
from dreamsa.toybox.dataset import TOYBOX_CAMERA
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import RADIUS, build


class Impostor(Scene):
    """A toy, or a billboard whose painted face always turns towards the camera."""

    def __init__(self, name, board=False):
        self.name, self.board = name, board

    def view(self, cameras, resolution, background=None):
        if self.board:
            cameras = orbit([0.0] * len(cameras), 15.0, 1.55, 1.075)
        render = render_solid(build(self.name), cameras, resolution, supersample=1)
        return Views(*map(torch.from_numpy, render), AZIMUTHS)


def test_evaluation_cameras_stand_45_degrees_apart():
    assert AZIMUTHS == (0, 45, 90, 135, 180, 225, 270, 315)
    assert QUARTERS == (0, 90, 180, 270)


def test_the_true_object_scores_perfectly():
    shape = geometry_of(Impostor("gas can"), TOYBOX_CAMERA, "gas can")
    assert shape.iou == [1.0] * 8
    assert max(shape.depth_error) < 1e-5


def test_a_billboard_scores_badly_from_other_sides():
    shape = geometry_of(Impostor("gas can", board=True), TOYBOX_CAMERA, "gas can")
    assert shape.iou[0] > 0.95
    assert min(shape.iou) < 0.6


def test_true_normals_of_a_ball_point_away_from_its_centre():
    directions = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, 2.0], [-3, 0, -4]]), dim=1)
    normals = surface_normals(build("ball"), directions * RADIUS * 0.98)
    torch.testing.assert_close(normals, directions, atol=0.03, rtol=0)


def test_normals_of_a_true_scene_are_right_and_of_a_turned_one_are_not():
    scene, front = TrueScene("gas can"), fixed_cameras(TOYBOX_CAMERA, [0.0, 90.0])
    right = normal_error(scene, build("gas can"), front, resolution=32)
    wrong = normal_error(scene, build("duck"), front, resolution=32)
    assert right == pytest.approx(5, abs=4)
    assert wrong > 25
