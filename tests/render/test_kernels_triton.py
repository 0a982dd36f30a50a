"""The renderer's Triton kernels against the torch references: on the GPU where there is one, else interpreted on the CPU."""

import pytest
import torch

from dreamsa.render.volume import composite_torch, cube_bounds, march_torch, visible_torch

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux")
from dreamsa.render import kernels_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


def packed(rng, counts):
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.tensor(counts).cumsum(0)])
    return starts.to(DEVICE), int(starts[-1])


COUNTS = [0, 5, 64, 65, 200, 1, 0]
"""Samples of rays: fewer than a program takes at a time, just as many, more, none at all."""


@pytest.mark.parametrize("fill", [0.0, 0.3, 1.0])
def test_it_marches_where_the_reference_does(rng, fill):
    occupied = torch.rand(16, 16, 16, generator=rng) < fill
    origins = torch.nn.functional.normalize(torch.randn(150, 3, generator=rng), dim=-1) * 1.5
    directions = torch.nn.functional.normalize(0.5 * torch.randn(150, 3, generator=rng) - origins, dim=-1)  # some of them miss
    near, far = cube_bounds(origins, directions, 0.6)
    first = torch.rand(150, generator=rng)
    given = [value.to(DEVICE) for value in (origins, directions, near, far, first)]
    expected = march_torch(occupied.to(DEVICE), 0.6, *given, 0.05)
    found = kernels_triton.march(occupied.to(DEVICE), 0.6, *given, 0.05)
    assert (found[0].diff() - expected[0].diff()).abs().sum() <= len(expected[1]) // 200  # a sample on a cell's face may round either way
    assert found[0][-1] == len(found[1])
    same = found[0].diff() == expected[0].diff()
    kept = [t_mid[torch.repeat_interleave(same, starts.diff())] for starts, t_mid in (found, expected)]
    torch.testing.assert_close(*kept)
    if fill in (0.0, 1.0):
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("threshold", [1e-3, 0.5])
def test_it_hides_what_the_reference_hides(rng, threshold):
    starts, n = packed(rng, COUNTS)
    depth = (torch.rand(n, generator=rng) * 0.2).to(DEVICE)
    expected = visible_torch(depth, starts, threshold)
    assert torch.equal(kernels_triton.visible(depth, starts, threshold), expected)
    assert 0 < expected.sum() < n


@pytest.mark.parametrize("density", [0.05, 2.0])
def test_sums_and_gradients_are_the_references(rng, density):
    starts, n = packed(rng, COUNTS)
    depth, values = torch.rand(n, generator=rng) * density, torch.rand(n, 6, generator=rng)
    upstream = torch.randn(len(COUNTS), 6, generator=rng).to(DEVICE)
    results = []
    for composite in (composite_torch, kernels_triton.composite):
        leaves = depth.to(DEVICE).requires_grad_(), values.to(DEVICE).requires_grad_()
        out = composite(*leaves, starts)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_probe_passes_where_the_kernels_run():
    kernels_triton.probe(torch.device(DEVICE))


def test_no_rays_have_no_samples():
    none = torch.zeros(0, 3, device=DEVICE)
    starts, t_mid = kernels_triton.march(
        torch.ones(2, 2, 2, dtype=torch.bool, device=DEVICE), 1.0, none, none, none[:, 0], none[:, 0], none[:, 0], 0.1
    )
    assert (starts.tolist(), len(t_mid)) == ([0], 0)


def test_strided_inputs_are_read_as_they_are(rng):
    starts, n = packed(rng, COUNTS)
    depth, values = torch.rand(n, 2, generator=rng).to(DEVICE), torch.rand(6, n, generator=rng).to(DEVICE)
    torch.testing.assert_close(
        kernels_triton.composite(depth[:, 1], values.T, starts), composite_torch(depth[:, 1], values.T, starts), atol=1e-5, rtol=1e-4
    )


def test_rays_without_samples_are_black():
    starts = torch.zeros(4, dtype=torch.long, device=DEVICE)
    none, values = torch.zeros(0, device=DEVICE), torch.zeros(0, 6, device=DEVICE)
    assert not kernels_triton.visible(none, starts, 0.5).any()
    assert not kernels_triton.composite(none, values, starts).any()
