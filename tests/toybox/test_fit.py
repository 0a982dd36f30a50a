"""The training loop on a model of two parameters."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from dreamsa.toybox.fit import FitConfig, cosine_lr, draw_losses, fit


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(()))


def train(folder, steps, stop=None):
    model = Line()
    target = torch.tensor([1.0, -2.0])

    def loss_at(step):
        if step == stop:
            raise KeyboardInterrupt
        model.seen += 1
        noise = torch.randn(2, generator=torch.Generator().manual_seed(step))
        return (model.a - target + 0.1 * noise).square().sum()

    config = FitConfig(steps, lr=0.05, warmup=5, ema=0.9, save_every=10, log_every=5)
    try:
        logged = list(fit(folder, model, loss_at, config))
    except KeyboardInterrupt:
        logged = []
    return torch.cat([model.a.detach(), model.seen.view(1)]), logged


@pytest.mark.parametrize("stop", [1, 10, 25, 39])
def test_an_interrupted_training_resumes_exactly(tmp_path, stop):
    complete, logged = train(tmp_path / "complete", 40)
    train(tmp_path / "broken", 40, stop)
    again, _ = train(tmp_path / "broken", 40)
    assert torch.equal(complete, again)
    assert [at.step for at in logged] == list(range(5, 41, 5))
    assert logged[-1].loss < logged[0].loss


def test_losses_are_plotted(tmp_path):
    train(tmp_path, 40)
    with Image.open(draw_losses(tmp_path)) as image:
        assert image.size == (700, 300)
        assert len(set(image.convert("L").getdata())) > 20  # not empty


def test_a_finished_training_does_not_run_again(tmp_path):
    complete, _ = train(tmp_path, 40)
    again, logged = train(tmp_path, 40)
    assert torch.equal(complete, again)
    assert logged == []


def test_the_learning_rate_is_a_function_of_the_step():
    config = FitConfig(100, lr=1.0, warmup=10)
    assert cosine_lr(0, config) == pytest.approx(0.1)
    assert cosine_lr(10, config) == pytest.approx(1.0)
    assert cosine_lr(100, config) == pytest.approx(0.05)
    assert cosine_lr(500, replace(config)) == pytest.approx(0.05)


def test_a_non_finite_loss_raises(tmp_path):
    model = Line()
    with pytest.raises(RuntimeError, match="became nan at step 0"):
        list(fit(tmp_path, model, lambda step: model.a.sum() * float("nan"), FitConfig(5)))
