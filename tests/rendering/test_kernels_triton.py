"""Triton renderer kernels against the torch reference: on a GPU, else interpreted on the CPU."""

import pytest
import torch

from dreamsa.rendering import kernels_torch
from dreamsa.rendering.volume import cube_bounds

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux")
from dreamsa.rendering import kernels_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


def packed(rng, counts):
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.tensor(counts).cumsum(0)])
    return starts.to(DEVICE), int(starts[-1])


COUNTS = [0, 5, 64, 65, 200, 1, 0]
"""Samples per ray: fewer than, as many as and more than a program processes at a time; none."""


@pytest.mark.parametrize("fill", [0.0, 0.3, 1.0])
def test_samples_are_the_references(rng, fill):
    occupied = torch.rand(16, 16, 16, generator=rng) < fill
    origins = torch.nn.functional.normalize(torch.randn(150, 3, generator=rng), dim=-1) * 1.5
    targets = 0.5 * torch.randn(150, 3, generator=rng)  # some rays miss the cube
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    near, far = cube_bounds(origins, directions, 0.6)
    first = torch.rand(150, generator=rng)
    given = [value.to(DEVICE) for value in (origins, directions, near, far, first)]
    expected = kernels_torch.march(occupied.to(DEVICE), 0.6, *given, 0.05)
    found = kernels_triton.march(occupied.to(DEVICE), 0.6, *given, 0.05)
    # a sample on a cell's face may round either way
    assert (found[0].diff() - expected[0].diff()).abs().sum() <= len(expected[1]) // 200
    assert found[0][-1] == len(found[1])
    same = found[0].diff() == expected[0].diff()
    kept = [t[torch.repeat_interleave(same, starts.diff())] for starts, t in (found, expected)]
    torch.testing.assert_close(*kept)
    if fill in (0.0, 1.0):
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("threshold", [1e-3, 0.5])
def test_visible_samples_are_the_references(rng, threshold):
    starts, n = packed(rng, COUNTS)
    depth = (torch.rand(n, generator=rng) * 0.2).to(DEVICE)
    expected = kernels_torch.visible(depth, starts, threshold)
    assert torch.equal(kernels_triton.visible(depth, starts, threshold), expected)
    assert 0 < expected.sum() < n


@pytest.mark.parametrize("density", [0.05, 2.0])
def test_sums_and_gradients_are_the_references(rng, density):
    starts, n = packed(rng, COUNTS)
    depth, values = torch.rand(n, generator=rng) * density, torch.rand(n, 6, generator=rng)
    upstream = torch.randn(len(COUNTS), 6, generator=rng).to(DEVICE)
    results = []
    for composite in (kernels_torch.composite, kernels_triton.composite):
        leaves = depth.to(DEVICE).requires_grad_(), values.to(DEVICE).requires_grad_()
        out = composite(*leaves, starts)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_probe_passes():
    kernels_triton.probe(torch.device(DEVICE))


def test_no_rays_have_no_samples():
    none = torch.zeros(0, 3, device=DEVICE)
    occupied = torch.ones(2, 2, 2, dtype=torch.bool, device=DEVICE)
    starts, t_mid = kernels_triton.march(occupied, 1.0, none, none, *[none[:, 0]] * 3, 0.1)
    assert (starts.tolist(), len(t_mid)) == ([0], 0)


def test_strided_inputs_are_supported(rng):
    starts, n = packed(rng, COUNTS)
    depth = torch.rand(n, 2, generator=rng).to(DEVICE)[:, 1]
    values = torch.rand(6, n, generator=rng).to(DEVICE).T
    expected = kernels_torch.composite(depth, values, starts)
    found = kernels_triton.composite(depth, values, starts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_rays_without_samples_give_0():
    starts = torch.zeros(4, dtype=torch.long, device=DEVICE)
    none, values = torch.zeros(0, device=DEVICE), torch.zeros(0, 6, device=DEVICE)
    assert not kernels_triton.visible(none, starts, 0.5).any()
    assert not kernels_triton.composite(none, values, starts).any()
