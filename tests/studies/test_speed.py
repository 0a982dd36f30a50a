"""Timings: their parts and the baseline that they compare with."""

import pytest
import torch

from dreamsa.config import HashGridConfig
from dreamsa.fields.layout import PRIMES, Layout
from dreamsa.studies.speed import (
    bench_hash_grids,
    bench_side_by_side,
    bench_step,
    torch_indexing,
)

SMALL = {"field.backend": "torch", "render.kernels": "torch", "camera.resolution": 16}


def test_the_baseline_interpolates_correctly():
    """On a single level: at lattice points it reads the table, halfway it averages."""
    layout = Layout(HashGridConfig(levels=1, log2_size=10, coarsest=8, finest=8))
    table = torch.arange(1024 * 2, dtype=torch.float32).view(-1, 2)
    encode, (a, b, c) = torch_indexing(layout), PRIMES

    def entry(x, y, z):
        return table[(x * a ^ y * b ^ z * c) % 1024]

    at = encode(torch.tensor([[2 / 8, 3 / 8, 5 / 8]]), table)
    torch.testing.assert_close(at, entry(2, 3, 5)[None])
    halfway = encode(torch.tensor([[2.5 / 8, 3 / 8, 5 / 8]]), table)
    torch.testing.assert_close(halfway, (entry(2, 3, 5) + entry(3, 3, 5))[None] / 2)


def test_the_numba_grid_is_much_faster_than_the_usual_torch_one():
    """`dreamsa bench` measures 10 x; 3 x must hold on any machine, however busy."""
    for facts in bench_hash_grids(3, points=16_384).values():
        assert facts["numba is faster by"] > 3


def test_the_parts_of_a_step_are_timed_with_the_given_settings():
    found = bench_step(3, SMALL)
    assert found["hash grid, renderer"] == "torch, torch"
    times = [value for name, value in found.items() if name.endswith(", ms")]
    assert len(times) == 7
    assert all(value > 0 for value in times)


@pytest.mark.slow
def test_two_runs_are_timed_at_the_same_time():
    found = bench_side_by_side(3, SMALL)
    assert found["alone, ms"] > 0
    assert found["each of two, ms"].count(",") == 1
    assert found["ratio"] > 0
