import numpy as np
import pytest
import torch
import trimesh
from numpy.testing import assert_allclose
from solids import HIGH, LOW, ball, box, either, field, torus, without

from dreamsa.meshing.hull import HALF_OPAQUE, EmptyScene, find_solid, sample_density
from dreamsa.meshing.surface import marching_cubes, vertex_normals


def solid_of(query, resolution=48):
    grid = sample_density(lambda points: query(points, None)[0], LOW, HIGH, resolution)
    return find_solid(grid)[0]


def mesh_of(query, resolution=48):
    return trimesh.Trimesh(*marching_cubes(solid_of(query, resolution)), process=False)


def test_a_ball_is_closed_in_place_and_faces_outward():
    centre, radius = (0.1, -0.15, 0.2), 0.3
    surface = marching_cubes(solid_of(field(ball(centre, radius))))
    mesh = trimesh.Trimesh(*surface, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.06)
    assert_allclose(mesh.center_mass, centre, atol=0.005)
    outward = surface.vertices - centre
    assert ((vertex_normals(surface) * outward).sum(1) > 0).all()


@pytest.mark.parametrize("strength", [8.0, 25.0, 400.0])
def test_fog_ends_where_a_line_of_sight_is_half_opaque(strength):
    """s exp(-r^2 / 2 w^2) has optical depth s w sqrt(2 pi) exp(-h^2 / 2 w^2) at distance h."""
    width = 0.12

    def fog(points, _):
        return strength * torch.exp(-points.square().sum(1) / (2 * width**2)), points

    radius = width * np.sqrt(2 * np.log(strength * width * np.sqrt(2 * np.pi) / HALF_OPAQUE))
    measured = np.linalg.norm(mesh_of(fog).vertices, axis=1).mean()
    assert measured == pytest.approx(radius, rel=0.04)  # a quarter of a cell


def test_a_fine_grid_gives_the_same_surface_as_a_coarse_one():
    """Above 128 cells a side, optical depths are computed on a coarser grid."""

    def query(points, _):
        return (20 * torch.exp(-(points - 0.1).square().sum(1) / (2 * 0.1**2)), points)

    coarse, fine = mesh_of(query, 64), mesh_of(query, 140)
    assert fine.volume == pytest.approx(coarse.volume, rel=0.03)
    assert_allclose(fine.center_mass, coarse.center_mass, atol=0.004)


def test_the_density_carves_concavities_that_no_outline_shows():
    outer = box((-0.31, -0.31, -0.31), (0.31, 0.31, 0.31))
    mesh = mesh_of(field(without(outer, box((-0.19, -0.19, -0.19), (0.19, 0.19, 0.4)))))
    assert mesh.volume == pytest.approx(0.62**3 - 0.38 * 0.38 * 0.5, rel=0.1)
    assert mesh.is_watertight


def test_a_ring_keeps_its_hole():
    assert mesh_of(field(torus())).euler_number == 0


def test_enclosed_cavities_are_filled():
    mesh = mesh_of(field(without(ball(radius=0.4), ball(radius=0.25))))
    assert mesh.body_count == 1
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.06)


def test_floaters_are_removed_and_larger_parts_stay():
    parts = ball((-0.2, 0, 0), 0.3), ball((0.4, 0, 0), 0.12), ball((0.5, 0.5, 0.5), 0.04)
    mesh = mesh_of(field(either(*parts)))
    assert mesh.body_count == 2
    assert mesh.bounds[1][2] < 0.35


def test_too_thin_fog_is_an_error_that_gives_the_opacity():
    """A cube of side 1.2 and density 1/4: 0.3 straight through, 0.52 from corner to corner."""

    def thin(points, _):
        return torch.full((len(points),), 0.25), points

    with pytest.raises(EmptyScene, match=r"no line .* half opaque \(the maximum is (3\d|40)%\)"):
        solid_of(thin)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_density_that_is_not_finite_is_an_error(value):
    with pytest.raises(EmptyScene, match="not finite"):
        solid_of(lambda points, _: (torch.full((len(points),), value), points))


def test_an_empty_box_is_an_error():
    with pytest.raises(EmptyScene, match="no cell of its occupancy grid is occupied"):
        sample_density(lambda points: points[:, 0], np.zeros(3), np.zeros(3), 16)
