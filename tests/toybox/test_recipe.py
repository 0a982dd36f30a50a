import shutil

import pytest
import torch
from safetensors.torch import load_file

from dreamsa.assets import asset
from dreamsa.toybox import recipe
from dreamsa.toybox.recipe import BATCHES, STEPS, TrainingOptions
from dreamsa.toybox.tokenizer import new_tokenizer


@pytest.fixture
def run(monkeypatch):
    """A recipe whose stages yield only their last argument."""
    monkeypatch.setattr(recipe, "cached_images", lambda *given, **named: [])
    for name in ("_dual_encoder", "_autoencoder", "_diffusion"):
        monkeypatch.setattr(recipe, name, lambda *given, name=name: iter([f"{name} {given[-1]}"]))
    options = TrainingOptions()
    return lambda folder, start=None: list(recipe.train_toybox(folder, "all", 1, options, start))


def test_a_finished_model_replaces_the_stages_before_the_unet(run, tmp_path):
    def starts(lines):
        return [line.split(":")[0] for line in lines if line.endswith(": starts")]

    assert starts(run(tmp_path)) == ["pictures", "text", "autoencoder", "diffusion", "judge"]
    lines = run(tmp_path, asset("toybox-sd").parent)
    assert starts(lines) == ["pictures", "diffusion", "judge"]
    assert f"_diffusion {asset('toybox-sd')}" in lines


@pytest.mark.parametrize("stage", ["text", "autoencoder"])
def test_stages_that_the_start_replaces_are_refused(stage, tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        start = asset("toybox-sd").parent
        list(recipe.train_toybox(tmp_path, stage, 10, TrainingOptions(), start))


def test_a_start_needs_its_judge_too(run, tmp_path):
    shutil.copytree(asset("toybox-sd"), tmp_path / "toybox-sd")
    with pytest.raises(
        ValueError, match=r"at .*toybox-clip\. Give a folder that holds toybox-clip"
    ):
        run(tmp_path, tmp_path)


def test_a_folder_without_a_finished_model_is_no_start(run, tmp_path):
    message = r"no finished model to start from at .*toybox-sd\. Give a folder that holds toybox-sd"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, tmp_path)


def test_the_unet_continues_from_the_finished_weights_in_float32(tmp_path):
    *_, unet = recipe._parts(tmp_path, asset("toybox-sd"))
    stored = load_file(asset("toybox-sd") / "unet" / "diffusion_pytorch_model.safetensors")
    assert unet.dtype == torch.float32
    assert all(
        torch.equal(value, stored[name].float()) for name, value in unet.state_dict().items()
    )


def test_the_text_encoder_continues_with_the_words_of_today(tmp_path):
    tokenizer, text_encoder, *_ = recipe._parts(tmp_path, asset("toybox-sd"))
    assert tokenizer.get_vocab() == new_tokenizer().get_vocab()
    assert text_encoder.config.vocab_size == len(tokenizer)
    assert text_encoder.dtype == torch.float32


def test_each_stage_has_its_own_steps_and_batch_unless_they_are_given():
    assert TrainingOptions().fit_config("judge").steps == STEPS["judge"]
    assert TrainingOptions().batch_of("judge") == BATCHES["judge"]
    assert TrainingOptions(steps=7).fit_config("judge").steps == 7
    assert TrainingOptions(batch=1024).batch_of("diffusion") == 1024


@pytest.mark.parametrize("name", ["steps", "batch", "workers"])
def test_options_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TrainingOptions(**{name: 0})
