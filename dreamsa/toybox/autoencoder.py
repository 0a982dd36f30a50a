"""The embedded Stable Diffusion's autoencoder: a thin AutoencoderTiny, 64 x 64 images to 8 x 16 x 16 latents."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false
# (decorators of diffusers and transformers hide their own types)

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float16
from torch import Tensor

from dreamsa.randomness import generator_for, seed_for
from dreamsa.toybox.dataset import Pictures, grey_backgrounds
from dreamsa.toybox.fit import FitConfig, FitStep, fit

LATENT_CHANNELS = 8
LATENT_NOISE = 0.05
"""Standard deviation of the noise that the decoder must bear: it makes the code smooth, as a VAE's posterior does."""


def new_autoencoder(width: int = 48) -> AutoencoderTiny:
    """Two strided convolutions down, no normalisation layers: one encoding with its backward takes about 15 ms on a CPU."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(2, 1, 0),
        latent_channels=LATENT_CHANNELS,
        latent_magnitude=3,
        scaling_factor=1.0,
    )


def train_autoencoder(
    folder: Path, model: AutoencoderTiny, pictures: Pictures, config: FitConfig, seed: int, batch: int = 32
) -> Iterator[FitStep]:
    """Minimise squared error plus a slight pull of the latents towards unit size."""
    model.to(memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng(seed_for(seed, step, "autoencoder"))
        images = pictures.over(rng.integers(len(pictures), size=batch), grey_backgrounds(batch, rng)).to(model.device)
        images = (images * 2 - 1).to(memory_format=torch.channels_last)
        latents = model.encode(images).latents
        noise = torch.randn(latents.shape, generator=generator_for(seed, step, "latent noise")).to(latents)
        restored = model.decode(latents + LATENT_NOISE * noise).sample
        return (restored.float() - images).square().mean() + 1e-4 * latents.float().square().mean()

    yield from fit(folder, model, loss_at, config)


@torch.no_grad()
def encode_pictures(model: AutoencoderTiny, pictures: Pictures, seed: int, batch: int = 64) -> Float16[Tensor, "n 8 16 16"]:
    """Latents of every picture over a grey background of its own, not yet scaled."""
    rng = np.random.default_rng(seed_for(seed, 0, "latent backgrounds"))
    chunks = []
    for start in range(0, len(pictures), batch):
        index = np.arange(start, min(start + batch, len(pictures)))
        images = pictures.over(index, grey_backgrounds(len(index), rng)).to(model.device)
        chunks.append(model.encode(images * 2 - 1).latents.half().cpu())
    return torch.cat(chunks)


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderTiny, pictures: Pictures, seed: int, count: int = 256) -> float:
    """Mean PSNR in dB of decode(encode(image)) over `count` pictures, images in [0, 1]."""
    rng = np.random.default_rng(seed_for(seed, 0, "psnr"))
    images = pictures.over(rng.integers(len(pictures), size=count), grey_backgrounds(count, rng)).to(model.device)
    restored = torch.cat([model.decode(model.encode(x * 2 - 1).latents).sample for x in images.split(32)])
    error = ((restored / 2 + 0.5).clamp(0, 1) - images).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())
