"""The embedded Stable Diffusion's autoencoder: 64 x 64 images to 8 x 16 x 16 latents."""

# Decorators of diffusers and transformers hide types:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float16
from torch import Tensor

from dreamsa.randomness import generator_for, seed_for
from dreamsa.statistics import psnr
from dreamsa.toybox.dataset import ImageSet, grey_backgrounds
from dreamsa.toybox.fit import FitConfig, FitStep, fit

LATENT_CHANNELS = 8
LATENT_NOISE = 0.05
"""Standard deviation of the noise before the decoder; it smooths the latents as in a VAE."""


def new_autoencoder(width: int = 48) -> AutoencoderTiny:
    """Two strided convolutions, no normalization: fast on a CPU."""
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
    folder: Path,
    model: AutoencoderTiny,
    dataset: ImageSet,
    config: FitConfig,
    seed: int,
    batch: int = 32,
) -> Iterator[FitStep]:
    """Minimize the squared error plus a weak penalty on the latents."""
    model.to(memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng(seed_for(seed, step, "autoencoder"))
        index = rng.integers(len(dataset), size=batch)
        images = dataset.over(index, grey_backgrounds(batch, rng)).to(model.device)
        images = (images * 2 - 1).to(memory_format=torch.channels_last)
        latents = model.encode(images).latents
        noise_rng = generator_for(seed, step, "latent noise")
        noise = torch.randn(latents.shape, generator=noise_rng).to(latents)
        restored = model.decode(latents + LATENT_NOISE * noise).sample
        error = (restored.float() - images).square().mean()
        return error + 1e-4 * latents.float().square().mean()

    yield from fit(folder, model, loss_at, config)


@torch.no_grad()
def encode_images(
    model: AutoencoderTiny, dataset: ImageSet, seed: int, batch: int = 64
) -> Float16[Tensor, "n 8 16 16"]:
    """Unscaled latents of every image, each over its own random grey background."""
    rng = np.random.default_rng(seed_for(seed, 0, "latent backgrounds"))
    chunks = []
    for start in range(0, len(dataset), batch):
        index = np.arange(start, min(start + batch, len(dataset)))
        images = dataset.over(index, grey_backgrounds(len(index), rng), model.device)
        chunks.append(model.encode(images * 2 - 1).latents.half().cpu())
    return torch.cat(chunks)


@torch.no_grad()
def reconstruction_psnr(
    model: AutoencoderTiny, dataset: ImageSet, seed: int, count: int = 256
) -> float:
    """Mean PSNR in dB of decode(encode(image)) over `count` images."""
    rng = np.random.default_rng(seed_for(seed, 0, "psnr"))
    index = rng.integers(len(dataset), size=count)
    images = dataset.over(index, grey_backgrounds(count, rng)).to(model.device)
    restored = [model.decode(model.encode(x * 2 - 1).latents).sample for x in images.split(32)]
    return float(psnr((torch.cat(restored) / 2 + 0.5).clamp(0, 1), images).mean())
