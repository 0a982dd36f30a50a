import torch

from dreamsa.rendering.shading import depth_normals


def plane(slope, size=8):
    """Orthographic points of z = -2 + slope * x; the right half is missing from row 5 on."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    points = torch.stack([x, y, -2 + slope * x], -1)[None]
    hit = torch.ones(1, size, size, dtype=torch.bool)
    hit[:, 5:, 4:] = False
    return points, hit


def test_normals_of_a_plane_up_to_its_edges():
    points, hit = plane(0.5)
    normals = depth_normals(torch.where(hit[..., None], points, torch.zeros_like(points)), hit)
    wanted = torch.tensor([-0.5, 0.0, 1.0]) / 1.25**0.5
    torch.testing.assert_close(normals[hit], wanted.expand(int(hit.sum()), 3))
    assert not normals[~hit].any()


def test_pixels_without_a_neighbour_have_no_normal():
    points, _ = plane(0.0)
    hit = torch.zeros(1, 8, 8, dtype=torch.bool)
    hit[0, 3, 3] = True
    assert not depth_normals(points, hit).any()
