import numpy as np
import pytest

from dreamsa.toybox.captions import CHIRAL, HELD_OUT
from dreamsa.toybox.shapes import (
    COLOURS,
    RADIUS,
    TOYS,
    _frame,
    build,
    distances,
    scene_distance,
)


def points_in_ball(n, radius, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3))
    return (
        points
        / np.linalg.norm(points, axis=1, keepdims=True)
        * radius
        * rng.random((n, 1)) ** (1 / 3)
    )


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
    """A step of 0.85 of the distance never passes through a surface."""
    solid, rng = build(name), np.random.default_rng(1)
    points = points_in_ball(3000, 0.6)
    d = distances(solid, points)
    outside = d > 1e-3
    direction = rng.normal(size=(len(points), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    moved = distances(solid, points + 0.85 * d[:, None] * direction)
    assert (moved[outside] > -1e-3).mean() > 0.999


@pytest.mark.parametrize("name", TOYS)
def test_objects_that_are_not_chiral_are_mirror_symmetric_in_y(name):
    """In shape and in colours, about the plane that the framing moved to -y * scale; up to the
    order in which the rabbit's parts are blended."""
    solid, (centre, scale) = build(name), _frame(name)
    points = points_in_ball(20_000, 0.55)
    mirrored = points * [1, -1, 1] - [0, 2 * centre[1] * scale, 0]
    d = distances(solid, points)
    asymmetry = np.abs(d - distances(solid, mirrored)).max()
    if name in CHIRAL - {"boat"}:
        assert asymmetry > 0.02
        return
    assert asymmetry < 1e-3
    near = np.abs(d) < 0.02

    def colours(points):
        owners = [scene_distance(solid.kinds, solid.rows, *point)[1] for point in points]
        return solid.colours[owners]

    np.testing.assert_array_equal(colours(points[near]), colours(mirrored[near]))


def test_primitives_equal_closed_forms():
    """Up to the 0.02 of the grid that frames an object in its ball."""
    at = np.array([[0.6, 0.0, 0.0], [0.0, 0.0, 0.55], [0.3, 0.4, 0.0]])
    np.testing.assert_allclose(
        distances(build("ball"), at), np.linalg.norm(at, axis=1) - 0.47, atol=0.02
    )
    corner = 0.3 * 3**0.5 - 0.015 * (3**0.5 - 1) + 0.01  # of the rounded cube; it touches the ball
    half = 0.3 * RADIUS / corner
    beside = np.hypot(0.3 - half, 0.4 - half)
    np.testing.assert_allclose(
        distances(build("cube"), at), [0.6 - half, 0.55 - half, beside], atol=0.02
    )


def test_black_is_ebony_and_unknown_names_are_refused():
    np.testing.assert_array_equal(build("mug", "black").colours, build("mug", "ebony").colours)
    with pytest.raises(ValueError, match="no 'castle'. It has: rabbit"):
        build("castle")
    with pytest.raises(ValueError, match="no colour 'mauve'"):
        build("mug", "mauve")
