"""The embedded Stable Diffusion's UNet: v-prediction on cached latents, and its pipeline."""

# Decorators of diffusers and transformers hide types:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from dreamsa.guidance.noise import add_noise, per_view
from dreamsa.randomness import generator_for, seed_for
from dreamsa.toybox.autoencoder import LATENT_CHANNELS
from dreamsa.toybox.dataset import Labels
from dreamsa.toybox.dual_encoder import TEXT_WIDTH, drawer, random_captions, token_cache
from dreamsa.toybox.fit import FitConfig, FitStep, fit

UNCONDITIONAL = 0.1
"""Fraction of empty captions, for classifier-free guidance (arXiv:2207.12598)."""


def new_unet() -> UNet2DConditionModel:
    """6.7 M parameters; attention only at 8 x 8 and 4 x 4, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction, which learns colours at high noise."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )


def train_diffusion(
    folder: Path,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    latents: Float[Tensor, "n 8 16 16"],
    labels: Labels,
    config: FitConfig,
    seed: int,
    batch: int = 32,
) -> Iterator[FitStep]:
    """Minimize the squared error of v = sqrt(a) noise - sqrt(1 - a) latents (arXiv:2202.00512).

    All timesteps have equal weight: the noisiest ones determine the view. The text encoder is
    trained too, as in latent diffusion (arXiv:2112.10752, sec. 3.3).

    Args:
        latents: Scaled, of any float dtype.
    """
    unet.to(memory_format=torch.channels_last)
    device = unet.device
    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder.requires_grad_(True)})
    alpha_bar = new_scheduler().alphas_cumprod.to(device)
    latents = latents.to(_place_for(latents, device))
    draw, tokens_of = drawer(labels), token_cache(tokenizer)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng(seed_for(seed, step, "diffusion"))
        noise_rng = generator_for(seed, step, "diffusion noise", device)
        index = draw(batch, rng)
        captions = random_captions(labels[index], rng)
        texts = [text if rng.random() >= UNCONDITIONAL else "" for text in captions]
        clean = latents[torch.from_numpy(index).to(latents.device)].to(device).float()
        timesteps = torch.randint(0, 1000, (batch,), generator=noise_rng, device=device)
        noise = torch.randn(clean.shape, generator=noise_rng, device=device)
        a = per_view(alpha_bar[timesteps])
        noisy = add_noise(clean, noise, alpha_bar[timesteps])
        target = a.sqrt() * noise - (1 - a).sqrt() * clean
        words = text_encoder(tokens_of(texts).to(device)).last_hidden_state
        predicted = unet(noisy.to(memory_format=torch.channels_last), timesteps, words).sample
        return (predicted.float() - target).square().mean()

    # a sixth faster on CPUs: flash attention suits many tokens
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with attention:
        yield from fit(folder, both, loss_at, config)


def _place_for(latents: Tensor, device: torch.device) -> torch.device:
    """The device if the latents take at most a quarter of its free memory, else the CPU."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if 4 * latents.nbytes <= free else torch.device("cpu")


def assemble(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    autoencoder: AutoencoderTiny,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """The parts as an ordinary Stable Diffusion pipeline."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline,
    texts: list[str],
    seed: int,
    steps: int = 25,
    guidance: float = 5.0,
    batch: int = 32,
) -> Float32[Tensor, "n 3 64 64"]:
    """One image per text, in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(texts), batch):
        chunk = texts[start : start + batch]
        generators = [generator_for(seed, start + i, "sample", "cpu") for i in range(len(chunk))]
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
        images.append(pipeline(chunk, generator=generators, **options).images.float().cpu())
    return torch.cat(images)
