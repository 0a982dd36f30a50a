"""The hash encoding's Triton kernels against the torch reference: on the GPU where there is one, else interpreted on the CPU."""

import pytest
import torch

from dreamsa.fields.hashgrid import HashGridConfig, encode_torch

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux")
from dreamsa.fields.hashgrid_triton import encode_triton, probe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.mark.parametrize("points", [1, 300])
@pytest.mark.parametrize(
    "config",
    [HashGridConfig(), HashGridConfig(levels=3, features=3, log2_size=8, coarsest=4, finest=64), HashGridConfig(levels=16, finest=4096)],
)
def test_it_reads_and_trains_the_same_table(rng, config, points):
    at = torch.rand(points, 3, generator=rng)
    at[-1] = 1.0  # the cube's far corner, where a dense level wraps around
    at[0] = 0.0
    table, upstream = torch.randn(config.entries, config.features, generator=rng), torch.randn(points, config.width, generator=rng)
    results = []
    for encode in (encode_torch(config), encode_triton(config)):
        leaf = table.to(DEVICE).requires_grad_()
        out = encode(at.to(DEVICE), leaf)
        results.append((out.detach(), torch.autograd.grad(out, leaf, upstream.to(DEVICE))[0]))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_the_probe_passes_where_the_kernels_run():
    probe(torch.device(DEVICE))


def test_no_points_give_no_encoding_and_no_gradient():
    config = HashGridConfig()
    table = torch.ones(config.entries, config.features, device=DEVICE, requires_grad=True)
    out = encode_triton(config)(torch.zeros(0, 3, device=DEVICE), table)
    assert out.shape == (0, config.width)
    assert not torch.autograd.grad(out.sum(), table)[0].any()


def test_gradients_in_the_points_are_refused():
    with pytest.raises(ValueError, match="no gradient in the points"):
        encode_triton(HashGridConfig())(torch.rand(2, 3, requires_grad=True), torch.zeros(HashGridConfig().entries, 2))
