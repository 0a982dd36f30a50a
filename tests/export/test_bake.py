import numpy as np
import pytest
import torch
import trimesh
from solids import BRICK, HIGH, LOW

from dreamsa.export import kernels
from dreamsa.export.asset import make_asset
from dreamsa.export.bake import SLANT, bake, colours_at, srgb_to_linear, unwrap
from dreamsa.export.mesh import Surface, vertex_normals


@pytest.fixture(scope="module")
def sphere():
    mesh = trimesh.creation.icosphere(3, radius=0.4)
    return Surface(np.asarray(mesh.vertices, float), np.asarray(mesh.faces))


def test_charts_keep_the_faces_and_do_not_overlap(sphere):
    charts = unwrap(sphere, 256)
    np.testing.assert_array_equal(charts.vertex[charts.faces], sphere.faces)
    assert charts.uv.min() >= 0
    assert charts.uv.max() <= 1
    a, b, c = (charts.uv[charts.faces[:, k]] for k in range(3))
    areas = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    face_of, weights = np.full((1024, 1024), -1, np.int32), np.zeros((1024, 1024, 3), np.float32)
    corners = np.concatenate([charts.uv * 1024, np.zeros((len(charts.uv), 1))], 1)
    kernels.rasterize(corners, charts.faces, face_of, weights, np.full((1024, 1024), -np.inf, np.float32))
    assert (face_of >= 0).mean() == pytest.approx(areas.sum(), rel=0.01)  # an overlap would cover less
    assert areas.sum() > 0.4


def test_a_texture_holds_the_colour_of_each_point_and_nothing_foreign_beside_it(sphere):
    charts = unwrap(sphere, 128)
    seen = []

    def colours(points, normals):
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        assert ((points * normals).sum(1) > 0.35).all()
        seen.append(len(points))
        return np.where(points[:, 2:] > 0, (0.9, 0.2, 0.1), (0.1, 0.3, 0.8)).astype(np.float32)

    picture = bake(charts, sphere, vertex_normals(sphere), 128, colours, np.zeros_like(sphere.vertices))
    assert 0.4 * 128**2 < sum(seen) < 128**2
    texels = {tuple(texel) for texel in picture.reshape(-1, 3)}
    assert texels == {(230, 51, 26), (26, 77, 204)}  # the gaps between charts too
    up = sphere.vertices[charts.vertex][:, 2]
    at = (charts.uv * (128, -128) + (0, 128)).clip(0, 127).astype(int)
    red = picture[at[:, 1], at[:, 0], 0] > 128
    assert (red == (up > 0))[np.abs(up) > 0.03].all()


def test_the_colour_is_what_fog_shows_from_outside():
    """Red fog of density 5 and depth 0.2 before a blue wall, seen at 50 degrees: e^-1.56 of the light comes from the wall."""

    def query(points, directions):
        fog = (points[:, 0] > 0) & (points[:, 0] < 0.2)
        density = torch.where(fog, 5.0, torch.where(points[:, 0] < 0, 1e4, 0.0))
        return density, torch.where(points[:, :1] > 0, torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]))

    colour = colours_at(query, np.array([[0.2, 0.1, 0.0]]), np.array([[1.0, 0, 0]]), 0.1, 0.3)[0]
    wall = np.exp(-5 * 0.2 * np.sqrt(1 + SLANT**2))
    np.testing.assert_allclose(colour, (1 - wall, 0, wall), atol=0.02)


def test_colours_that_depend_on_the_direction_are_averaged_around_the_normal():
    def query(points, directions):
        return (torch.full((len(points),), 50.0), (1 + directions) / 2)

    normals = np.array([[1.0, 0, 0], [0, -1.0, 0], [0.6, 0, 0.8]])
    wanted = (1 - normals / np.sqrt(1 + SLANT**2)) / 2
    np.testing.assert_allclose(colours_at(query, np.zeros((3, 3)), normals, 0.1, 0.1), wanted, atol=1e-5)


def test_empty_space_has_a_colour_and_no_nan():
    def query(points, directions):
        return (torch.zeros(len(points)), torch.full((len(points), 3), 0.25))

    np.testing.assert_allclose(colours_at(query, np.zeros((1, 3)), np.array([[0, 0, 1.0]]), 0.1, 0.1), 0.25, atol=1e-6)


def test_linear_light():
    """Reference values of IEC 61966-2-1."""
    linear = srgb_to_linear(np.array([[0, 10, 128], [188, 255, 0]]) / 255)
    np.testing.assert_allclose(linear, ((0, 0.003035, 0.215861), (0.502886, 1, 0)), atol=1e-6)


def test_vertex_colours_are_those_of_the_field():
    asset = make_asset(BRICK, LOW, HIGH, resolution=40, colour="vertex")
    assert asset.colours is not None
    assert asset.picture is None
    top = (asset.surface.vertices[:, 2] > 0.28) & (np.abs(asset.surface.vertices[:, :2] - (0.1, -0.05)) < 0.2).all(1)
    np.testing.assert_allclose(asset.colours[top], np.tile((26, 51, 179), (top.sum(), 1)), atol=1)


def test_what_is_missing_is_added_between_the_vertices_too(sphere):
    charts = unwrap(sphere, 128)
    missing = np.stack([0.25 * sphere.vertices[:, 2], np.zeros(len(sphere.vertices)), np.full(len(sphere.vertices), 0.2)], 1)

    def colours(points, normals):
        return np.full((len(points), 3), 0.4, np.float32)

    picture = bake(charts, sphere, vertex_normals(sphere), 128, colours, missing).astype(int)
    assert (picture[:, :, 1:] == (102, 153)).all()
    reds = np.unique(picture[:, :, 0])
    np.testing.assert_allclose(reds[[0, -1]], 255 * (0.4 + 0.25 * np.array([-0.4, 0.4])), atol=1)
    assert len(reds) > 40  # no steps from face to face
