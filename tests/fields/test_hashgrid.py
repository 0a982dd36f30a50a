import itertools

import numba
import numpy as np
import pytest
import torch

from dreamsa.accelerator import why_not
from dreamsa.fields.hashgrid import PRIMES, BackendUnavailable, HashGridConfig, encode_torch, make_encode, new_table, resolve_backend
from dreamsa.fields.hashgrid_cpu import encode_numba
from dreamsa.fields.hashgrid_tcnn import tcnn_config

CONFIGS = [
    HashGridConfig(levels=8, log2_size=15, finest=256),
    HashGridConfig(levels=4, features=4, log2_size=10, coarsest=4, finest=64),
    HashGridConfig(levels=1, log2_size=14, coarsest=16, finest=16),
]


def slow_encode(config: HashGridConfig, points: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Instant-NGP, sec. 3, one point and one corner at a time, with Python integers."""
    out = np.zeros((len(points), config.width))
    for i, point in enumerate(points):
        for level, (scale, n, size) in enumerate(zip(config.scales, config.resolutions, config.sizes, strict=True)):
            position = [float(c) * scale + 0.5 for c in point]
            cell = [int(np.floor(c)) for c in position]
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (c + d for c, d in zip(cell, corner, strict=True))
                if n**3 <= size:
                    index = x + n * y + n * n * z
                else:
                    index = ((x * PRIMES[0]) ^ (y * PRIMES[1]) ^ (z * PRIMES[2])) % 2**32
                weight = np.prod([p - c if d else 1 - (p - c) for p, c, d in zip(position, cell, corner, strict=True)])
                row = config.offsets[level] + index % size
                out[i, level * config.features : (level + 1) * config.features] += weight * table[row]
    return out


@pytest.mark.parametrize("config", CONFIGS)
def test_torch_equals_a_loop_over_points_and_corners(config, rng):
    points, table = torch.rand(40, 3, generator=rng, dtype=torch.float64), new_table(config, rng).double()
    points[0], points[1] = 0, 1
    expected = slow_encode(config, points.numpy(), table.numpy())
    np.testing.assert_allclose(encode_torch(config)(points, table).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_numba_equals_torch_forward_and_backward(config, rng):
    points, table = torch.rand(5000, 3, generator=rng), torch.randn(config.entries, config.features, generator=rng)
    upstream = torch.randn(5000, config.width, generator=rng)
    results = []
    for encode in (encode_torch(config), encode_numba(config)):
        leaf = table.clone().requires_grad_()
        out = encode(points, leaf)
        (grad,) = torch.autograd.grad(out, leaf, upstream)
        results.append((out.detach(), grad))
    torch.testing.assert_close(*(r[0] for r in results), atol=2e-4, rtol=1e-4)  # positions are rounded to float32
    torch.testing.assert_close(*(r[1] for r in results), atol=5e-3, rtol=1e-3)


def test_torch_gradients_are_exact(rng):
    config = HashGridConfig(levels=2, log2_size=6, coarsest=2, finest=8)
    points = torch.rand(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    table = torch.randn(config.entries, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encode_torch(config), (points, table))


def test_numba_gradient_is_bit_identical_over_runs_and_thread_counts(rng):
    config = HashGridConfig()
    points, upstream = torch.rand(20_000, 3, generator=rng), torch.randn(20_000, config.width, generator=rng)
    table, grads = new_table(config, rng).requires_grad_(), []
    before = numba.get_num_threads()
    try:
        for threads in (1, before, 1, before):
            numba.set_num_threads(threads)
            grads.append(torch.autograd.grad(encode_numba(config)(points, table), table, upstream)[0])
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(grads[0], other) for other in grads[1:])


def test_encoding_interpolates_the_table_at_lattice_points():
    config = HashGridConfig(levels=1, log2_size=14, coarsest=16, finest=16)
    table = torch.arange(config.entries * 2, dtype=torch.float32).view(-1, 2)
    at = torch.tensor([[(3 - 0.5) / 15, (2 - 0.5) / 15, (1 - 0.5) / 15]])
    torch.testing.assert_close(encode_torch(config)(at, table), table[3 + 16 * (2 + 16 * 1)][None], rtol=1e-5, atol=1e-2)


def test_layout_is_tiny_cuda_nns():
    """GridEncoding: scale = base * growth^level - 1, resolution = ceil(scale) + 1, sizes rounded up to 8 and capped at T."""
    config = HashGridConfig(levels=16, log2_size=19, coarsest=16, finest=4096)
    for level in range(16):
        scale = np.exp2(level * np.log2(config.growth)) * 16 - 1
        resolution = int(np.ceil(scale)) + 1
        assert config.resolutions[level] == resolution
        assert config.sizes[level] == min(-(-(resolution**3) // 8) * 8, 2**19)
    assert tcnn_config(config)["per_level_scale"] == pytest.approx(256 ** (1 / 15))


def test_a_named_backend_never_falls_back():
    with pytest.raises(BackendUnavailable, match="needs a CUDA device"):
        make_encode(HashGridConfig(), "tcnn", "cpu")
    with pytest.raises(BackendUnavailable, match="runs on the CPU"):
        resolve_backend("numba", "cuda")
    assert resolve_backend("auto", "cpu") == ("numba", "the device is a CPU")


def test_auto_on_a_gpu_takes_triton_and_says_why_where_it_cannot(monkeypatch):
    trouble = None
    monkeypatch.setattr("dreamsa.fields.hashgrid.why_not", lambda module, device: trouble)
    assert resolve_backend("auto", "cuda") == ("triton", "the device is a GPU")
    trouble = "RuntimeError: Failed to find C compiler"
    assert resolve_backend("auto", "cuda") == ("torch", f"no Triton: {trouble}")
    with pytest.raises(BackendUnavailable, match="Failed to find C compiler. Use torch"):
        resolve_backend("triton", "cuda")
    with pytest.raises(BackendUnavailable, match="needs a CUDA device, the device is cpu. Use numba or torch"):
        resolve_backend("triton", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_that_cannot_run_are_told_and_do_no_harm():
    for module in ("dreamsa.fields.hashgrid_triton", "dreamsa.render.kernels_triton", "dreamsa.nothing"):
        assert why_not(module, torch.device("cuda")).partition(":")[0].endswith(("Error", "Found"))


def test_numba_refuses_gradients_in_the_points(rng):
    with pytest.raises(ValueError, match="no gradient in the points"):
        encode_numba(HashGridConfig())(torch.rand(2, 3, requires_grad=True), new_table(HashGridConfig(), rng))


@pytest.mark.parametrize("bad", [{"levels": 0}, {"log2_size": 30}, {"coarsest": 64, "finest": 16}, {"features": 9}])
def test_sizes_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="must lie in"):
        HashGridConfig(**bad)
