import numpy as np
import pytest
import torch

from dreamsa.assets import asset
from dreamsa.toybox.diffusion import new_unet, train_diffusion
from dreamsa.toybox.dual_encoder import new_dual_encoder
from dreamsa.toybox.fit import FitConfig
from dreamsa.toybox.tokenizer import new_tokenizer


def test_diffusers_itself_loads_the_embedded_model_and_draws_a_red_ball():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        asset("toybox-sd"), safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a red ball, front view"
    drawn = pipeline(prompt, num_inference_steps=10, guidance_scale=5, output_type="np")
    image = drawn.images[0]
    middle = image[24:40, 24:40].mean((0, 1))
    assert image.shape == (64, 64, 3)
    assert middle[0] > middle[1] + 0.2


def test_the_embedded_model_is_small():
    files = [path for path in asset("toybox-sd").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40 * 2**20


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_same_training_gives_the_same_loss_and_trains_the_text_encoder_too(
    device, tmp_path, rng
):
    latents = torch.randn(6, 8, 16, 16, generator=rng).half()
    labels = np.array([(i, i, 60 * i, 15 * i) for i in range(6)], np.int16)

    def trained(folder):
        torch.manual_seed(0)
        tokenizer = new_tokenizer()
        text_encoder = new_dual_encoder(tokenizer).text_model.to(device)
        before = text_encoder.get_input_embeddings().weight.detach().clone()
        config = FitConfig(2, log_every=1)
        parts = new_unet().to(device), text_encoder, tokenizer
        steps = train_diffusion(folder, *parts, latents, labels, config, seed=0, batch=3)
        losses = [at.loss for at in steps]
        return losses, (text_encoder.get_input_embeddings().weight - before).abs().max().item()

    losses, change = trained(tmp_path / "a")
    assert losses == pytest.approx(trained(tmp_path / "b")[0], rel=1e-3)
    assert all(np.isfinite(losses))
    assert change > 0
