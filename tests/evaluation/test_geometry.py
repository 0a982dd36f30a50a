"""Shape of scenes that are known: true objects, and billboards."""

import torch

from dreamsa.evaluation.geometry import geometry_of
from dreamsa.evaluation.views import AZIMUTHS, QUARTERS
from dreamsa.rendering.cameras import orbit
from dreamsa.rendering.volume import Image
from dreamsa.scene import Scene
from dreamsa.toybox.dataset import TOYBOX_CAMERA
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build


class Impostor(Scene):
    """A toy, or a billboard whose painted face always turns towards the camera."""

    def __init__(self, name, board=False):
        self.name, self.board = name, board

    def view(self, cameras, resolution, background=None):
        if self.board:
            cameras = orbit([0.0] * len(cameras), 15.0, 1.55, 1.075)
        render = render_solid(build(self.name), cameras, resolution)
        values = (torch.from_numpy(v) for v in (render.rgb, render.opacity, render.depth))
        return Image(*values, torch.zeros(()), 0)


def test_evaluation_cameras_stand_45_degrees_apart():
    assert AZIMUTHS == (0, 45, 90, 135, 180, 225, 270, 315)
    assert QUARTERS == (0, 90, 180, 270)


def test_the_true_object_scores_perfectly():
    shape = geometry_of(Impostor("gas can"), TOYBOX_CAMERA, "gas can")
    assert shape.iou == [1.0] * 8
    assert max(shape.depth_error) == 0


def test_a_billboard_scores_badly_from_other_sides():
    shape = geometry_of(Impostor("gas can", board=True), TOYBOX_CAMERA, "gas can")
    assert shape.iou[0] > 0.95
    assert min(shape.iou) < 0.6
