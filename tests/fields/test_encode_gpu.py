"""tiny-cuda-nn against the torch reference: `make test-gpu` on a machine with both."""

import pytest
import torch

from dreamsa.config import HashGridConfig
from dreamsa.fields.encode_torch import encode_torch
from dreamsa.fields.layout import Layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    "config", [HashGridConfig(), HashGridConfig(levels=16, log2_size=19, finest=4096)]
)
def test_tcnn_reads_and_trains_the_same_table(config):
    layout = Layout(config)
    pytest.importorskip(
        "tinycudann", reason="tiny-cuda-nn is not built here; `dreamsa doctor` prints the command"
    )
    from dreamsa.fields.encode_tcnn import encode_tcnn

    rng = torch.Generator("cuda").manual_seed(0)
    points = torch.rand(4096, 3, generator=rng, device="cuda")
    table = torch.randn(layout.entries, config.features, generator=rng, device="cuda")
    upstream = torch.randn(4096, layout.width, generator=rng, device="cuda")
    results = []
    for encode in (encode_torch(layout), encode_tcnn(layout)):
        leaf = table.clone().requires_grad_()
        out = encode(points, leaf)
        results.append((out, torch.autograd.grad(out, leaf, upstream)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-2, rtol=1e-2)
