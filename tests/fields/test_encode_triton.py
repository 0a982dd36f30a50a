"""Triton hash encoding against the torch reference: on a GPU, else interpreted on the CPU."""

import pytest
import torch

from dreamsa.config import HashGridConfig
from dreamsa.fields.encode_torch import encode_torch
from dreamsa.fields.layout import Layout

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux")
from dreamsa.fields.encode_triton import encode_triton, probe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.mark.parametrize("points", [1, 300])
@pytest.mark.parametrize(
    "config",
    [
        HashGridConfig(),
        HashGridConfig(levels=3, features=3, log2_size=8, coarsest=4, finest=64),
        HashGridConfig(levels=16, finest=4096),
    ],
)
def test_triton_reads_and_trains_the_same_table(rng, config, points):
    layout = Layout(config)
    at = torch.rand(points, 3, generator=rng)
    at[-1] = 1.0  # the cube's far corner, where a dense level wraps around
    at[0] = 0.0
    table = torch.randn(layout.entries, config.features, generator=rng)
    upstream = torch.randn(points, layout.width, generator=rng)
    results = []
    for encode in (encode_torch(layout), encode_triton(layout)):
        leaf = table.to(DEVICE).requires_grad_()
        out = encode(at.to(DEVICE), leaf)
        results.append((out.detach(), torch.autograd.grad(out, leaf, upstream.to(DEVICE))[0]))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_the_probe_passes():
    probe(torch.device(DEVICE))


def test_no_points_give_no_encoding_and_no_gradient():
    layout = Layout(HashGridConfig())
    table = torch.ones(layout.entries, layout.config.features, device=DEVICE, requires_grad=True)
    out = encode_triton(layout)(torch.zeros(0, 3, device=DEVICE), table)
    assert out.shape == (0, layout.width)
    assert not torch.autograd.grad(out.sum(), table)[0].any()


def test_gradients_in_the_points_are_refused():
    layout = Layout(HashGridConfig())
    with pytest.raises(ValueError, match="no gradient in the points"):
        encode_triton(layout)(torch.rand(2, 3, requires_grad=True), torch.zeros(layout.entries, 2))
