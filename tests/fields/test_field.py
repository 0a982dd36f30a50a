"""Density activations."""

from typing import get_args

import pytest
import torch

from dreamsa.config import Activation, FieldConfig
from dreamsa.fields.field import HashField, density_of
from dreamsa.presets import preset
from dreamsa.randomness import generator_for
from dreamsa.settings import with_overrides

ACTIVATIONS = get_args(Activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_densities_are_finite_and_grow_with_a_finite_gradient(activation):
    raw = torch.linspace(-100, 100, 401, requires_grad=True)
    density = density_of(raw, activation)
    (gradient,) = torch.autograd.grad(density.sum(), raw)
    assert density.isfinite().all() and (density >= 0).all() and (density.diff() >= 0).all()
    assert gradient.isfinite().all()


def test_the_exponential_is_one_where_softplus_is_log_two():
    zero = torch.zeros(1)
    torch.testing.assert_close(density_of(zero, "exp"), torch.ones(1))
    torch.testing.assert_close(density_of(zero, "softplus"), torch.tensor([2.0]).log())


def test_a_field_uses_the_activation_it_is_given():
    points, fields = torch.rand(50, 3) - 0.5, {}
    for activation in ACTIVATIONS:
        field = HashField(
            FieldConfig(activation=activation, blob_density=0), generator_for(0, 0, "field")
        )
        fields[activation] = field.query(points).density
    torch.testing.assert_close(
        torch.log1p(fields["exp"]), fields["softplus"]
    )  # softplus(x) = log(1 + exp(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sharpness_is_a_factor_on_the_density_alone_and_no_parameter(activation):
    field = HashField(FieldConfig(activation=activation), generator_for(0, 0, "field"))
    points = torch.rand(50, 3) - 0.5
    before = field.query(points)
    field.sharpness.fill_(8.0)
    after = field.query(points)
    torch.testing.assert_close(after.density, 8 * before.density)
    assert torch.equal(after.rgb, before.rgb)
    assert "sharpness" in field.state_dict()
    assert "sharpness" not in dict(field.named_parameters())


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"field\.activation.*'softplus' or 'exp'"):
        with_overrides(preset("toybox", "a rabbit"), {"field.activation": "relu"})
