import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTokenizer

from dreamsa.assets import asset
from dreamsa.render.cameras import orbit
from dreamsa.toybox import recipe
from dreamsa.toybox.captions import LOOK_ALIKE, WORDS
from dreamsa.toybox.dataset import NAMES, UNTOLD, Pictures
from dreamsa.toybox.dual_encoder import _moved, draw_shares, random_captions, targets_of
from dreamsa.toybox.fit import FitConfig, cosine_lr, draw_losses, fit
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build
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


def test_losses_are_drawn(tmp_path):
    train(tmp_path, 40)
    with Image.open(draw_losses(tmp_path)) as picture:
        assert picture.size == (700, 300)
        assert len(set(picture.convert("L").getdata())) > 20  # there is something on it


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


def test_views_that_nobody_can_tell_are_no_targets():
    """-100 is what cross-entropy leaves out; objects and colours are always asked."""
    labels = np.array([(name, 5, view) for name in range(len(NAMES)) for view in (UNTOLD, 0, 1, 2, 3)], np.int16)
    views = targets_of(labels, 2)
    untold = np.array([NAMES[name] in LOOK_ALIKE or view == UNTOLD for name, _, view in labels])
    assert 0 < untold.sum() < len(untold)
    assert (views[untold] == -100).all()
    np.testing.assert_array_equal(views[~untold], labels[~untold, 2])
    for kind in (0, 1):
        np.testing.assert_array_equal(targets_of(labels, kind), labels[:, kind])


def test_moved_pictures_are_shifted_and_mirrored_and_nothing_is_invented():
    """Every one is a cut from its picture with an empty border, or that cut's mirror image: pixels stay premultiplied."""
    pictures = np.random.default_rng(0).integers(1, 256, (40, 8, 8, 4), np.uint8)
    labels = np.array([(NAMES.index("duck"), 0, 0)] * 40, np.int16)
    moved = _moved(Pictures(pictures, labels), np.random.default_rng(1), most=2).rgba
    found = []
    for before, after in zip(np.pad(pictures, ((0, 0), (2, 2), (2, 2), (0, 0))), moved, strict=True):
        cuts = {(y, x): before[y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
        ways = [
            (at, mirrored) for at, cut in cuts.items() for mirrored in (False, True) if (after == (cut[:, ::-1] if mirrored else cut)).all()
        ]
        assert len(ways) == 1
        found += ways
    assert {mirrored for _, mirrored in found} == {False, True}
    assert len({at for at, _ in found}) > 10
    np.testing.assert_array_equal(moved, _moved(Pictures(pictures, labels), np.random.default_rng(1), most=2).rgba)


def test_a_mirrored_mug_would_show_its_back_so_mugs_are_not_mirrored():
    front, back = (render_solid(build("mug", "red"), orbit([azimuth], 20.0)).opacity[0] > 0.5 for azimuth in (0.0, 180.0))
    overlap = lambda a, b: (a & b).sum() / (a | b).sum()  # noqa: E731
    assert overlap(front[:, ::-1], back) > 0.97 > overlap(front, back)
    pictures = np.random.default_rng(0).integers(1, 256, (20, 8, 8, 4), np.uint8)
    mugs = Pictures(pictures, np.array([(NAMES.index("mug"), 0, 0)] * 20, np.int16))
    np.testing.assert_array_equal(_moved(mugs, np.random.default_rng(1), most=0).rgba, pictures)


def test_a_caption_names_no_view_where_none_fits():
    labels = np.array([(NAMES.index("duck"), 1, view) for view in (UNTOLD, 0)] * 100, np.int16)
    texts = random_captions(labels, np.random.default_rng(0))
    assert not any("view" in text for text in texts[::2])
    assert 70 < sum("front view" in text for text in texts[1::2]) < 100


def test_objects_with_a_front_are_drawn_twice_as_often():
    shares = draw_shares(np.array([(NAMES.index(name), 0, 0) for name in ("duck", "ball", "ball")], np.int16))
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25])


@pytest.fixture
def told(monkeypatch):
    """A recipe whose stages do nothing but tell what they were given."""
    monkeypatch.setattr(recipe, "cached_pictures", lambda *given, **named: [])
    for name in ("_dual_encoder", "_autoencoder", "_diffusion"):
        monkeypatch.setattr(recipe, name, lambda *given, name=name: iter([f"{name} {given[-1]}"]))
    return lambda folder, start=None: list(recipe.train_toybox(folder, "all", 1, 1, 0, "cpu", start))


def test_a_finished_model_takes_the_place_of_the_stages_before_the_unet(told, tmp_path):
    starts = lambda lines: [line.split(":")[0] for line in lines if line.endswith(": starts")]  # noqa: E731
    assert starts(told(tmp_path)) == ["pictures", "text", "autoencoder", "diffusion", "judge"]
    lines = told(tmp_path, asset("toybox-sd").parent)
    assert starts(lines) == ["pictures", "diffusion", "judge"]
    assert f"_diffusion {asset('toybox-sd')}" in lines


@pytest.mark.parametrize("stage", ["text", "autoencoder"])
def test_a_stage_that_a_start_already_has_is_refused(stage, tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        list(recipe.train_toybox(tmp_path, stage, 1, 10, 0, "cpu", asset("toybox-sd").parent))


def test_a_start_needs_its_judge_too(told, tmp_path):
    shutil.copytree(asset("toybox-sd"), tmp_path / "toybox-sd")
    with pytest.raises(ValueError, match=r"no finished model to start from at .*toybox-clip\. Give a folder that holds toybox-clip"):
        told(tmp_path, tmp_path)


def test_a_folder_without_a_finished_model_is_no_start(told, tmp_path):
    with pytest.raises(ValueError, match=r"no finished model to start from at .*toybox-sd\. Give a folder that holds toybox-sd"):
        told(tmp_path, tmp_path)


def test_the_unet_goes_on_from_the_finished_weights_in_float32(tmp_path):
    *_, unet = recipe._ingredients(tmp_path, asset("toybox-sd"))
    stored = load_file(asset("toybox-sd") / "unet" / "diffusion_pytorch_model.safetensors")
    assert unet.dtype == torch.float32
    assert all(torch.equal(value, stored[name].float()) for name, value in unet.state_dict().items())
