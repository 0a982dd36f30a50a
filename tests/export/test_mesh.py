import numpy as np
import pytest
import torch
import trimesh
from solids import HIGH, LOW, ball, box, either, field, torus, without

from dreamsa.export.mesh import (
    HALF,
    EmptyScene,
    Surface,
    check,
    decimate,
    find_solid,
    march,
    sample_density,
    vertex_normals,
    volume,
)


def grid_of(query, resolution=48):
    return sample_density(lambda points: query(points, None)[0], LOW, HIGH, resolution)


def surface_of(query, resolution=48):
    return march(find_solid(grid_of(query, resolution))[0])


def as_trimesh(surface):
    return trimesh.Trimesh(surface.vertices, surface.faces, process=False)


def test_a_ball_comes_out_whole_in_its_place_and_outside_out():
    centre, radius = (0.1, -0.15, 0.2), 0.3
    surface = surface_of(field(ball(centre, radius)))
    mesh = as_trimesh(surface)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.06)
    np.testing.assert_allclose(mesh.center_mass, centre, atol=0.005)
    outward = surface.vertices - centre
    assert ((vertex_normals(surface) * outward).sum(1) > 0).all()


@pytest.mark.parametrize("strength", [8.0, 25.0, 400.0])
def test_fog_ends_where_a_line_of_sight_is_half_opaque(strength):
    """density s exp(-r^2 / 2 w^2): a line at distance h has the optical depth s w sqrt(2 pi) exp(-h^2 / 2 w^2)."""
    width = 0.12
    surface = surface_of(lambda points, _: (strength * torch.exp(-points.square().sum(1) / (2 * width**2)), points))
    wanted = width * np.sqrt(2 * np.log(strength * width * np.sqrt(2 * np.pi) / HALF))
    assert np.linalg.norm(surface.vertices, axis=1).mean() == pytest.approx(wanted, rel=0.04)  # a quarter of a cell


def test_a_fine_grid_gives_the_same_surface_as_a_coarse_one():
    """Above 128 cells a side, lines of sight are followed on a coarser grid."""

    def query(points, _):
        return (20 * torch.exp(-(points - 0.1).square().sum(1) / (2 * 0.1**2)), points)

    coarse, fine = as_trimesh(surface_of(query, 64)), as_trimesh(surface_of(query, 140))
    assert fine.volume == pytest.approx(coarse.volume, rel=0.03)
    np.testing.assert_allclose(fine.center_mass, coarse.center_mass, atol=0.004)


def test_what_no_outline_shows_is_carved_by_the_density():
    cup = without(box((-0.31, -0.31, -0.31), (0.31, 0.31, 0.31)), box((-0.19, -0.19, -0.19), (0.19, 0.19, 0.4)))
    mesh = as_trimesh(surface_of(field(cup)))
    assert mesh.volume == pytest.approx(0.62**3 - 0.38 * 0.38 * 0.5, rel=0.1)
    assert mesh.is_watertight


def test_a_ring_keeps_its_hole():
    assert as_trimesh(surface_of(field(torus()))).euler_number == 0


def test_hollows_that_nobody_sees_are_filled():
    mesh = as_trimesh(surface_of(field(without(ball(radius=0.4), ball(radius=0.25)))))
    assert mesh.body_count == 1
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.06)


def test_floaters_go_and_true_parts_stay():
    query = field(either(ball((-0.2, 0, 0), 0.3), ball((0.4, 0, 0), 0.12), ball((0.5, 0.5, 0.5), 0.04)))
    mesh = as_trimesh(surface_of(query))
    assert mesh.body_count == 2
    assert mesh.bounds[1][2] < 0.35


def test_too_thin_a_fog_is_an_error_that_says_how_thin():
    """A cube of side 1.2 and density 1/4: 0.3 straight through, 0.52 from corner to corner."""

    def thin(points, _):
        return torch.full((len(points),), 0.25), points

    with pytest.raises(EmptyScene, match=r"no line of sight .* half opaque \(the most is (3[0-9]|40)%\)"):
        find_solid(grid_of(thin))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_density_is_an_error(value):
    with pytest.raises(EmptyScene, match="not finite"):
        grid_of(lambda points, _: (torch.full((len(points),), value), points))


def test_an_empty_box_is_an_error():
    with pytest.raises(EmptyScene, match="nothing in it"):
        sample_density(lambda points: points[:, 0], np.zeros(3), np.zeros(3), 16)


def test_an_inside_out_mesh_is_an_error():
    inverted = trimesh.creation.icosphere(2)
    inverted.invert()
    with pytest.raises(EmptyScene, match="inside out"):
        check(Surface(np.asarray(inverted.vertices), np.asarray(inverted.faces)))
    with pytest.raises(EmptyScene, match="no faces"):
        check(Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int64)))


def test_fewer_faces_keep_the_shape():
    before = surface_of(field(torus()))
    after = decimate(before, 1000)
    assert len(after.faces) <= 1000 < len(before.faces)
    assert as_trimesh(after).is_watertight
    assert volume(after) == pytest.approx(volume(before), rel=0.03)
    assert decimate(before, 10**6) is before
