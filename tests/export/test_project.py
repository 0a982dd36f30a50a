import numpy as np
import trimesh

from dreamsa import api
from dreamsa.export.mesh import Surface, vertex_normals
from dreamsa.export.project import Photograph, correction
from dreamsa.fields.field import FieldConfig
from dreamsa.render.cameras import CameraConfig, orbit
from dreamsa.render.volume import RenderConfig
from dreamsa.scene import Scene

MESH = trimesh.creation.icosphere(4, radius=0.4)
BALL = Surface(np.asarray(MESH.vertices, float), np.asarray(MESH.faces))
NORMALS = vertex_normals(BALL)
CAMERAS = orbit([0.0, 90.0, 180.0, 270.0], 0.0, distance=2.0, focal=1.5)
GREY = np.full((len(BALL.vertices), 3), 0.5)


def pictures(colour, opacity=1.0, cameras=CAMERAS):
    """Every pixel of each picture in one colour."""
    return [
        Photograph(
            pose.double().numpy(), float(focal), np.broadcast_to(np.asarray(colour, float), (40, 40, 3)).copy(), np.full((40, 40), opacity)
        )
        for pose, focal in zip(cameras.pose, cameras.focal, strict=True)
    ]


def test_what_all_pictures_agree_on_is_taken():
    missing = correction(BALL, NORMALS, GREY, pictures((0.9, 0.5, 0.1)))
    belt = np.abs(BALL.vertices[:, 2]) < 0.2
    assert (missing[belt, 0] > 0.25).all()  # a few views against the doubt
    assert (missing[belt, 0] <= 0.4 + 1e-9).all()
    np.testing.assert_allclose(missing[:, 1], 0, atol=1e-12)
    np.testing.assert_allclose(missing[:, 2], -missing[:, 0], atol=1e-12)


def test_the_far_side_is_not_painted_and_one_that_nobody_sees_keeps_its_colour():
    front = correction(BALL, NORMALS, GREY, pictures((1, 1, 1), cameras=CAMERAS[0:1]))
    np.testing.assert_array_equal(front[BALL.vertices[:, 0] < -0.1], 0)
    assert (front[BALL.vertices[:, 0] > 0.35] > 0.3).all()
    np.testing.assert_array_equal(correction(BALL, NORMALS, GREY, pictures((1, 1, 1), opacity=0.4)), 0)
    np.testing.assert_array_equal(correction(BALL, NORMALS, GREY, []), 0)


def test_what_stands_before_hides_what_is_behind():
    small = trimesh.creation.icosphere(3, radius=0.3)
    small.apply_translation((1.0, 0, 0))
    both = trimesh.util.concatenate([MESH, small])
    surface = Surface(np.asarray(both.vertices, float), np.asarray(both.faces))
    missing = correction(surface, vertex_normals(surface), np.full((len(both.vertices), 3), 0.5), pictures((1, 1, 1), cameras=CAMERAS[0:1]))
    behind = (np.linalg.norm(surface.vertices[:, 1:], axis=1) < 0.1) & (np.abs(surface.vertices[:, 0] - 0.4) < 0.03)
    assert behind.any()
    np.testing.assert_array_equal(missing[behind], 0)


def test_left_is_left_and_up_is_up():
    """A picture whose left half is red and whose upper half is green, taken from +x: left is -y, up is +z."""
    [one] = pictures((0, 0, 0), cameras=CAMERAS[0:1])
    one.rgb[:, :20, 0], one.rgb[:20, :, 1] = 1, 1
    missing = correction(BALL, NORMALS, np.zeros_like(GREY), [one])
    right = CAMERAS.pose[0, :, 0].double().numpy()
    across, seen = BALL.vertices @ right, BALL.vertices[:, 0] > 0.2
    assert (missing[seen & (across < -0.05), 0] > 0.3).all()
    assert (missing[seen & (across > 0.05), 0] < 0.05).all()
    assert (missing[seen & (BALL.vertices[:, 2] > 0.05), 1] > 0.3).all()
    assert (missing[seen & (BALL.vertices[:, 2] < -0.05), 1] < 0.05).all()


def test_pictures_of_a_scene_hold_the_objects_own_colours():
    """Over black, a picture is the object's own colour times its opacity."""
    scene = Scene(FieldConfig(), RenderConfig(samples=32), 0)
    scene.refresh(0, 0, full=True)
    cameras = api.around(CameraConfig())
    assert len(cameras) == 24
    assert 15 not in cameras.elevation_deg.round().tolist()  # where evaluations look from
    view = scene.look(cameras[0:1], 16, 0.0)
    [taken] = api.photographs(scene, cameras[0:1], 16)
    solid = taken.opacity > 0.05
    assert solid.any()
    np.testing.assert_allclose((taken.rgb * taken.opacity[..., None])[solid], view.rgb[0].movedim(0, -1).numpy()[solid], atol=1e-4)
    assert taken.rgb.max() > view.rgb.max()
