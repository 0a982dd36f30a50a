from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from dreamsa.toybox.captions import WORDS
from dreamsa.toybox.fit import FitConfig, cosine_lr, fit
from dreamsa.toybox.tokenizer import MAX_LENGTH, new_tokenizer


def test_known_words_are_one_token_and_unknown_ones_are_spelled():
    tokenizer = new_tokenizer()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in WORDS)
    assert tokenizer.tokenize("Purple  RABBIT") == ["purple</w>", "rabbit</w>"]
    spelled = tokenizer.tokenize("zebra 日本 🐇")
    assert len(spelled) > 5
    assert tokenizer.unk_token not in spelled


def test_the_tokenizer_survives_its_folder(tmp_path):
    new_tokenizer().save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "an ebony gas can, side view"
    assert loaded(text).input_ids == new_tokenizer()(text).input_ids
    assert loaded.model_max_length == MAX_LENGTH


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
def test_an_interrupted_training_ends_where_an_unbroken_one_does(tmp_path, stop):
    whole, logged = train(tmp_path / "whole", 40)
    train(tmp_path / "broken", 40, stop)
    again, _ = train(tmp_path / "broken", 40)
    assert torch.equal(whole, again)
    assert [at.step for at in logged] == list(range(5, 41, 5))
    assert logged[-1].loss < logged[0].loss


def test_a_finished_training_is_not_run_again(tmp_path):
    whole, _ = train(tmp_path, 40)
    again, logged = train(tmp_path, 40)
    assert torch.equal(whole, again)
    assert logged == []


def test_the_learning_rate_is_a_function_of_the_step():
    config = FitConfig(100, lr=1.0, warmup=10)
    assert cosine_lr(0, config) == pytest.approx(0.1)
    assert cosine_lr(10, config) == pytest.approx(1.0)
    assert cosine_lr(100, config) == pytest.approx(0.05)
    assert cosine_lr(500, replace(config)) == pytest.approx(0.05)


def test_a_loss_that_is_not_finite_stops_with_a_sentence(tmp_path):
    model = Line()
    with pytest.raises(RuntimeError, match="became nan at step 0"):
        list(fit(tmp_path, model, lambda step: model.a.sum() * float("nan"), FitConfig(5)))
