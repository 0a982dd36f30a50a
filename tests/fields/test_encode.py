import itertools

import numba
import numpy as np
import pytest
import torch

from dreamsa.config import HashGridConfig
from dreamsa.device import triton_problem
from dreamsa.fields import backends
from dreamsa.fields.backends import make_encode, resolve_backend
from dreamsa.fields.encode_numba import encode_numba
from dreamsa.fields.encode_tcnn import tcnn_config
from dreamsa.fields.encode_torch import encode_torch
from dreamsa.fields.layout import PRIMES, BackendUnavailable, Layout, new_table
from dreamsa.rendering import kernels

LAYOUTS = [
    Layout(HashGridConfig(levels=8, log2_size=15, finest=256)),
    Layout(HashGridConfig(levels=4, features=4, log2_size=10, coarsest=4, finest=64)),
    Layout(HashGridConfig(levels=1, log2_size=14, coarsest=16, finest=16)),
]
GPU = torch.device("cuda")


def slow_encode(layout: Layout, points: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Instant-NGP, sec. 3, one point and one corner at a time, with Python integers."""
    features = layout.config.features
    out = np.zeros((len(points), layout.width))
    for i, point in enumerate(points):
        levels = zip(layout.scales, layout.resolutions, layout.sizes, strict=True)
        for level, (scale, n, size) in enumerate(levels):
            position = [float(c) * scale + 0.5 for c in point]
            cell = [int(np.floor(c)) for c in position]
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (c + d for c, d in zip(cell, corner, strict=True))
                if n**3 <= size:
                    index = x + n * y + n * n * z
                else:
                    index = ((x * PRIMES[0]) ^ (y * PRIMES[1]) ^ (z * PRIMES[2])) % 2**32
                axes = zip(position, cell, corner, strict=True)
                weight = np.prod([p - c if d else 1 - (p - c) for p, c, d in axes])
                row = layout.offsets[level] + index % size
                out[i, level * features : (level + 1) * features] += weight * table[row]
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_equals_a_loop_over_points_and_corners(layout, rng):
    points = torch.rand(40, 3, generator=rng, dtype=torch.float64)
    table = new_table(layout, rng).double()
    points[0], points[1] = 0, 1
    expected = slow_encode(layout, points.numpy(), table.numpy())
    np.testing.assert_allclose(encode_torch(layout)(points, table).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numba_equals_torch_forward_and_backward(layout, rng):
    points = torch.rand(5000, 3, generator=rng)
    table = torch.randn(layout.entries, layout.config.features, generator=rng)
    upstream = torch.randn(5000, layout.width, generator=rng)
    results = []
    for encode in (encode_torch(layout), encode_numba(layout)):
        leaf = table.clone().requires_grad_()
        out = encode(points, leaf)
        (grad,) = torch.autograd.grad(out, leaf, upstream)
        results.append((out.detach(), grad))
    # positions are rounded to float32
    torch.testing.assert_close(*(r[0] for r in results), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(*(r[1] for r in results), atol=5e-3, rtol=1e-3)


def test_torch_gradients_are_exact(rng):
    layout = Layout(HashGridConfig(levels=2, log2_size=6, coarsest=2, finest=8))
    points = torch.rand(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    table = torch.randn(layout.entries, 2, generator=rng, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(encode_torch(layout), (points, table))


def test_numba_gradient_is_bit_identical_over_runs_and_thread_counts(rng):
    layout = Layout(HashGridConfig())
    points = torch.rand(20_000, 3, generator=rng)
    upstream = torch.randn(20_000, layout.width, generator=rng)
    table, grads = new_table(layout, rng).requires_grad_(), []
    encode = encode_numba(layout)
    before = numba.get_num_threads()
    try:
        for threads in (1, before, 1, before):
            numba.set_num_threads(threads)
            grads.append(torch.autograd.grad(encode(points, table), table, upstream)[0])
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(grads[0], other) for other in grads[1:])


def test_encoding_interpolates_the_table_at_lattice_points():
    layout = LAYOUTS[2]
    table = torch.arange(layout.entries * 2, dtype=torch.float32).view(-1, 2)
    point = torch.tensor([[(3 - 0.5) / 15, (2 - 0.5) / 15, (1 - 0.5) / 15]])
    entry = table[3 + 16 * (2 + 16 * 1)][None]
    torch.testing.assert_close(encode_torch(layout)(point, table), entry, rtol=1e-5, atol=1e-2)


def test_layout_is_tiny_cuda_nns():
    """GridEncoding: scale = base * growth^level - 1, resolution = ceil(scale) + 1, and sizes are
    rounded up to a multiple of 8 and limited to T."""
    layout = Layout(HashGridConfig(levels=16, log2_size=19, coarsest=16, finest=4096))
    for level in range(16):
        scale = np.exp2(level * np.log2(layout.growth)) * 16 - 1
        resolution = int(np.ceil(scale)) + 1
        assert layout.resolutions[level] == resolution
        assert layout.sizes[level] == min(-(-(resolution**3) // 8) * 8, 2**19)
    assert tcnn_config(layout)["per_level_scale"] == pytest.approx(256 ** (1 / 15))


def test_a_named_backend_never_falls_back():
    with pytest.raises(BackendUnavailable, match="needs a CUDA device"):
        make_encode(LAYOUTS[0], "tcnn", "cpu")
    with pytest.raises(BackendUnavailable, match="runs on the CPU"):
        resolve_backend("numba", "cuda")
    assert resolve_backend("auto", "cpu") == ("numba", "the device is a CPU")


def test_auto_on_a_gpu_is_triton_or_gives_the_reason(monkeypatch):
    problem = None
    monkeypatch.setattr("dreamsa.fields.backends.triton_problem", lambda probe, device: problem)
    assert resolve_backend("auto", "cuda") == ("triton", "the device is a GPU")
    assert resolve_backend("triton", "cuda") == ("triton", "requested")
    problem = "RuntimeError: Failed to find C compiler"
    assert resolve_backend("auto", "cuda") == ("torch", f"no Triton: {problem}")
    with pytest.raises(BackendUnavailable, match="Failed to find C compiler. Use torch"):
        resolve_backend("triton", "cuda")


def test_triton_needs_a_gpu():
    with pytest.raises(BackendUnavailable, match=r"need a CUDA device, .*cpu\. Use numba or torch"):
        resolve_backend("triton", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("probe", [backends._probe_triton, kernels._probe_triton])
def test_a_probe_that_fails_is_a_reason(probe):
    assert triton_problem(probe, GPU).partition(":")[0].endswith(("Error", "Found"))


def test_numba_refuses_gradients_in_the_points(rng):
    with pytest.raises(ValueError, match="no gradient in the points"):
        encode_numba(LAYOUTS[0])(torch.rand(2, 3, requires_grad=True), new_table(LAYOUTS[0], rng))


@pytest.mark.parametrize(
    "bad", [{"levels": 0}, {"log2_size": 30}, {"coarsest": 64, "finest": 16}, {"features": 9}]
)
def test_sizes_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"field\.grid\.\w+ must be"):
        HashGridConfig(**bad)
