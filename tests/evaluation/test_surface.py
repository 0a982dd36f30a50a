"""Point sets and densities of known shapes."""

import numpy as np
import pytest
import torch
from true_scene import TrueScene

from dreamsa.evaluation.surface import (
    POINTS,
    density_grid,
    floaters,
    match_points,
    match_surface,
    sample_points,
    true_points,
)
from dreamsa.meshing.hull import Grid
from dreamsa.meshing.surface import Surface

SQUARE = Surface(
    np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), np.array([[0, 1, 2], [0, 2, 3]])
)


def test_points_are_uniform_over_the_area():
    points = sample_points(SQUARE, 40_000)
    assert points[:, 2].max() == 0
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=4, range=[(0, 1), (0, 1)])[0]
    assert counts == pytest.approx(np.full((4, 4), 2500), rel=0.1)


def test_parallel_squares_are_as_far_apart_as_they_are():
    a, b = sample_points(SQUARE, 20_000), sample_points(SQUARE, 20_000, seed=1)
    lifted = b + np.array([0, 0, 0.05])
    assert match_points(a, b).f_score == 1
    far = match_points(a, lifted)
    assert far.chamfer == pytest.approx(0.05, abs=1e-3)
    assert (far.f_score, far.precision, far.recall) == (0, 0, 0)


def test_half_a_surface_has_full_precision_and_half_the_recall():
    whole = sample_points(SQUARE, 40_000)
    half = whole[whole[:, 0] < 0.5]
    match = match_points(half, sample_points(SQUARE, 40_000, seed=1))
    assert match.precision == 1
    assert match.recall == pytest.approx(0.52, abs=0.02)
    assert match.f_score == pytest.approx(2 * match.recall / (1 + match.recall))


def test_the_true_surface_lies_in_its_ball_and_includes_open_hollows():
    points = true_points("mug")
    assert points.shape == (POINTS, 3)
    assert np.linalg.norm(points, axis=1).max() < 0.52
    bottom = points[np.hypot(*points[:, :2].T) < 0.1, 2]
    outer, inner = bottom[bottom < -0.29], bottom[bottom > -0.29]
    assert len(outer) == pytest.approx(len(inner), rel=0.2)


def test_the_mesh_of_a_true_scene_matches_the_true_surface():
    grid = density_grid(TrueScene("gas can"))
    match = match_surface(grid, "gas can")
    assert match.f_score > 0.99
    assert match.chamfer < 0.01
    assert floaters(grid) == 0


def grid_of(*balls, n=24):
    axis = np.linspace(-1, 1, n)
    at = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    inside = [np.linalg.norm(at - np.array(c), axis=-1) < r for c, r in balls]
    return Grid(100 * np.any(inside, 0).astype(np.float32), np.full(3, -1.0), axis[1] - axis[0])


def test_floaters_are_the_smaller_part():
    big, small = ((-0.4, 0, 0), 0.4), ((0.6, 0, 0), 0.2)
    assert floaters(grid_of(big)) == 0
    assert floaters(grid_of(big, small)) == pytest.approx(1 / 9, abs=0.03)
    assert floaters(None) is None


def test_a_ball_beside_a_true_object_floats():
    scene = TrueScene("duck", balls=(((0.45, -0.45, 0.45), 0.06),))
    assert 0.005 < floaters(density_grid(scene)) < 0.02


def test_thin_fog_is_no_matter():
    grid = grid_of(((-0.4, 0, 0), 0.4))
    hazy = grid._replace(values=np.maximum(grid.values, 2))
    assert floaters(hazy) == 0


def test_an_empty_scene_has_no_surface():
    scene = TrueScene("ball")
    scene.occupancy.occupied = torch.zeros_like(scene.occupancy.occupied)
    assert density_grid(scene) is None
    assert match_surface(None, "ball") == (None, 0, 0, 0)
