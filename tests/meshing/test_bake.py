import numpy as np
import pytest
import torch
import trimesh
from numpy.testing import assert_allclose, assert_array_equal
from solids import BRICK, HIGH, LOW

from dreamsa.meshing.asset import make_asset
from dreamsa.meshing.bake import (
    SLANT,
    bake_texture,
    composite_colours,
    rasterize,
    srgb_to_linear,
    unwrap,
)
from dreamsa.meshing.surface import Surface, vertex_normals


@pytest.fixture(scope="module")
def sphere():
    mesh = trimesh.creation.icosphere(3, radius=0.4)
    return Surface(np.asarray(mesh.vertices, float), np.asarray(mesh.faces))


def test_charts_keep_the_faces_and_do_not_overlap(sphere):
    charts = unwrap(sphere, 256)
    assert_array_equal(charts.vertex[charts.faces], sphere.faces)
    assert charts.uv.min() >= 0
    assert charts.uv.max() <= 1
    a, b, c = charts.uv[charts.faces].swapaxes(0, 1)
    area = np.abs(np.cross(b - a, c - a)).sum() / 2
    corners = np.concatenate([charts.uv * 1024, np.zeros((len(charts.uv), 1))], 1)
    covered = rasterize(corners, charts.faces, 1024)[0] >= 0
    assert covered.mean() == pytest.approx(area, rel=0.01)  # an overlap would cover less
    assert area > 0.4


def test_a_texture_has_the_colour_of_each_point_and_of_no_other_chart(sphere):
    charts = unwrap(sphere, 128)
    counts = []

    def colours(points, normals):
        assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        assert ((points * normals).sum(1) > 0.35).all()
        counts.append(len(points))
        return np.where(points[:, 2:] > 0, (0.9, 0.2, 0.1), (0.1, 0.3, 0.8)).astype(np.float32)

    correction = np.zeros_like(sphere.vertices)
    texture = bake_texture(charts, sphere, vertex_normals(sphere), 128, colours, correction)
    assert 0.4 * 128**2 < sum(counts) < 128**2
    texels = {tuple(texel) for texel in texture.reshape(-1, 3)}
    assert texels == {(230, 51, 26), (26, 77, 204)}  # the gaps between charts too
    up = sphere.vertices[charts.vertex][:, 2]
    at = (charts.uv * (128, -128) + (0, 128)).clip(0, 127).astype(int)
    red = texture[at[:, 1], at[:, 0], 0] > 128
    assert (red == (up > 0))[np.abs(up) > 0.03].all()


def test_fog_in_front_of_a_wall_is_composited():
    """Red fog of density 5 and depth 0.2, seen at 50 degrees, transmits e^-1.56 of a blue wall."""

    def query(points, directions):
        x, (red, _, blue) = points[:, 0], torch.eye(3)
        density = torch.where((x > 0) & (x < 0.2), 5.0, torch.where(x < 0, 1e4, 0.0))
        return density, torch.where(x[:, None] > 0, red, blue)

    point, normal = np.array([[0.2, 0.1, 0.0]]), np.array([[1.0, 0, 0]])
    colour = composite_colours(query, point, normal, 0.1, 0.3)
    wall = np.exp(-5 * 0.2 * np.sqrt(1 + SLANT**2))
    assert_allclose(colour, [(1 - wall, 0, wall)], atol=0.02)


def test_direction_dependent_colours_are_averaged_around_the_normal():
    def query(points, directions):
        return (torch.full((len(points),), 50.0), (1 + directions) / 2)

    normals = np.array([[1.0, 0, 0], [0, -1.0, 0], [0.6, 0, 0.8]])
    expected = (1 - normals / np.sqrt(1 + SLANT**2)) / 2
    colours = composite_colours(query, np.zeros((3, 3)), normals, 0.1, 0.1)
    assert_allclose(colours, expected, atol=1e-5)


def test_empty_space_has_a_colour_and_no_nan():
    def query(points, directions):
        return (torch.zeros(len(points)), torch.full((len(points), 3), 0.25))

    colours = composite_colours(query, np.zeros((1, 3)), np.array([[0, 0, 1.0]]), 0.1, 0.1)
    assert_allclose(colours, 0.25, atol=1e-6)


def test_srgb_to_linear_gives_reference_values_of_iec_61966_2_1():
    linear = srgb_to_linear(np.array([[0, 10, 128], [188, 255, 0]]) / 255)
    assert_allclose(linear, ((0, 0.003035, 0.215861), (0.502886, 1, 0)), atol=1e-6)


def test_vertex_colours_are_those_of_the_field():
    asset = make_asset(BRICK, LOW, HIGH, resolution=40, colour="vertex")
    assert asset.colours is not None
    assert asset.texture is None
    vertices = asset.surface.vertices
    top = (vertices[:, 2] > 0.28) & (np.abs(vertices[:, :2] - (0.1, -0.05)) < 0.2).all(1)
    assert_allclose(asset.colours[top], np.tile((26, 51, 179), (top.sum(), 1)), atol=1)


def test_a_correction_is_interpolated_between_the_vertices(sphere):
    charts, normals, n = unwrap(sphere, 128), vertex_normals(sphere), len(sphere.vertices)
    correction = np.stack([0.25 * sphere.vertices[:, 2], np.zeros(n), np.full(n, 0.2)], 1)

    def colours(points, normals):
        return np.full((len(points), 3), 0.4, np.float32)

    texture = bake_texture(charts, sphere, normals, 128, colours, correction).astype(int)
    assert (texture[:, :, 1:] == (102, 153)).all()
    reds = np.unique(texture[:, :, 0])
    assert_allclose(reds[[0, -1]], 255 * (0.4 + 0.25 * np.array([-0.4, 0.4])), atol=1)
    assert len(reds) > 40  # no steps from face to face
