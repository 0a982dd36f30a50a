"""tiny-cuda-nn against the torch reference: `make test-gpu` on a machine that has both."""

import pytest
import torch

from dreamsa.fields.hashgrid import HashGridConfig, encode_torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("config", [HashGridConfig(), HashGridConfig(levels=16, log2_size=19, finest=4096)])
def test_tcnn_reads_and_trains_the_same_table(config):
    pytest.importorskip("tinycudann", reason="tiny-cuda-nn is not built here; `dreamsa doctor` prints the command")
    from dreamsa.fields.hashgrid_tcnn import encode_tcnn

    rng = torch.Generator("cuda").manual_seed(0)
    points = torch.rand(4096, 3, generator=rng, device="cuda")
    table = torch.randn(config.entries, config.features, generator=rng, device="cuda")
    upstream = torch.randn(4096, config.width, generator=rng, device="cuda")
    results = []
    for encode in (encode_torch(config), encode_tcnn(config)):
        leaf = table.clone().requires_grad_()
        out = encode(points, leaf)
        results.append((out, torch.autograd.grad(out, leaf, upstream)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-2, rtol=1e-2)
