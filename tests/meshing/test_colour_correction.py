import numpy as np
import trimesh
from numpy.testing import assert_allclose, assert_array_equal

from dreamsa.meshing.colour_correction import CalibratedView, vertex_correction
from dreamsa.meshing.surface import Surface, vertex_normals
from dreamsa.rendering.cameras import orbit

MESH = trimesh.creation.icosphere(4, radius=0.4)
BALL = Surface(np.asarray(MESH.vertices, float), np.asarray(MESH.faces))
NORMALS = vertex_normals(BALL)
CAMERAS = orbit([0.0, 90.0, 180.0, 270.0], 0.0, distance=2.0, focal=1.5)
GREY = np.full((len(BALL.vertices), 3), 0.5)


def plain_views(colour, opacity=1.0, cameras=CAMERAS):
    """Views whose pixels all have one colour."""
    rgb = np.full((40, 40, 3), colour, float)
    return [
        CalibratedView(pose.double().numpy(), float(focal), rgb, np.full((40, 40), opacity))
        for pose, focal in zip(cameras.pose, cameras.focal, strict=True)
    ]


def test_a_colour_that_all_views_agree_on_is_taken():
    correction = vertex_correction(BALL, NORMALS, GREY, plain_views((0.9, 0.5, 0.1)))
    belt = np.abs(BALL.vertices[:, 2]) < 0.2
    assert (correction[belt, 0] > 0.25).all()  # a few views against the prior
    assert (correction[belt, 0] <= 0.4 + 1e-9).all()
    assert_allclose(correction[:, 1], 0, atol=1e-12)
    assert_allclose(correction[:, 2], -correction[:, 0], atol=1e-12)


def test_vertices_that_no_view_shows_keep_their_colour():
    white, front = (1, 1, 1), CAMERAS[0:1]
    correction = vertex_correction(BALL, NORMALS, GREY, plain_views(white, cameras=front))
    assert_array_equal(correction[BALL.vertices[:, 0] < -0.1], 0)
    assert (correction[BALL.vertices[:, 0] > 0.35] > 0.3).all()
    for views in (plain_views(white, opacity=0.4), []):
        assert_array_equal(vertex_correction(BALL, NORMALS, GREY, views), 0)


def test_an_object_in_front_hides_the_vertices_behind():
    small = trimesh.creation.icosphere(3, radius=0.3)
    small.apply_translation((1.0, 0, 0))
    both = trimesh.util.concatenate([MESH, small])
    surface = Surface(np.asarray(both.vertices, float), np.asarray(both.faces))
    x, y, z = surface.vertices.T
    views, grey = plain_views((1, 1, 1), cameras=CAMERAS[0:1]), np.full((len(x), 3), 0.5)
    correction = vertex_correction(surface, vertex_normals(surface), grey, views)
    behind = (np.hypot(y, z) < 0.1) & (np.abs(x - 0.4) < 0.03)
    assert behind.any()
    assert_array_equal(correction[behind], 0)


def test_left_is_left_and_up_is_up():
    """A view from +x, red on its left (-y) and green on its upper half (+z)."""
    [view] = plain_views((0, 0, 0), cameras=CAMERAS[0:1])
    view.rgb[:, :20, 0], view.rgb[:20, :, 1] = 1, 1
    correction = vertex_correction(BALL, NORMALS, np.zeros_like(GREY), [view])
    right = CAMERAS.pose[0, :, 0].double().numpy()
    across, up = BALL.vertices @ right, BALL.vertices[:, 2]
    visible = BALL.vertices[:, 0] > 0.2
    assert (correction[visible & (across < -0.05), 0] > 0.3).all()
    assert (correction[visible & (across > 0.05), 0] < 0.05).all()
    assert (correction[visible & (up > 0.05), 1] > 0.3).all()
    assert (correction[visible & (up < -0.05), 1] < 0.05).all()
