"""Spherical harmonics, and a field with view-dependent colours."""

import torch

from dreamsa.config import FieldConfig, HashGridConfig
from dreamsa.fields.directions import HARMONICS, spherical_harmonics
from dreamsa.fields.field import HashField
from dreamsa.randomness import generator_for


def directions(count, seed=0):
    return torch.nn.functional.normalize(
        torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        dim=-1,
    )


def test_the_harmonics_are_orthonormal_over_the_sphere():
    values = spherical_harmonics(directions(400_000))
    gram = 4 * torch.pi * values.T @ values / len(values)
    torch.testing.assert_close(gram, torch.eye(HARMONICS, dtype=gram.dtype), atol=0.02, rtol=0)


def test_each_degree_is_invariant_under_rotations():
    rotation, _ = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    d = directions(50)
    before, after = spherical_harmonics(d), spherical_harmonics(d @ rotation.T)
    for first, last in ((0, 1), (1, 4), (4, 9), (9, 16)):
        torch.testing.assert_close(
            before[:, first:last].norm(dim=1), after[:, first:last].norm(dim=1)
        )


def test_only_view_dependent_colours_depend_on_the_direction_and_density_never_does():
    points, a, b = torch.rand(20, 3) - 0.5, directions(20, 1).float(), directions(20, 2).float()
    for view_dependent in (False, True):
        config = FieldConfig(
            HashGridConfig(levels=4, log2_size=10), width=16, view_dependent=view_dependent
        )
        field = HashField(config, generator_for(0, 0, "field"))
        one, other, nothing = field.query(points, a), field.query(points, b), field.query(points)
        assert torch.equal(one.density, other.density) and torch.equal(one.density, nothing.density)
        assert torch.equal(one.rgb, other.rgb) != view_dependent
        assert torch.equal(one.rgb, nothing.rgb) != view_dependent
