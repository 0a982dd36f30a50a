"""Randomness as a pure function of where you are: `generator_for(seed, step, stream)`.

No global generator is ever used, so there is no generator state to save, and a resumed run draws
what an unbroken one would have drawn.
"""

import hashlib

import torch
from torch import Tensor, nn


def seed_for(seed: int, step: int, stream: str) -> int:
    """A 63-bit seed from (seed, step, stream): SHA-256, so equal on every machine and independent
    of PYTHONHASHSEED."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(
    seed: int, step: int, stream: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator for one step of one stream of random numbers ("cameras", "noise", ...)."""
    return torch.Generator(device).manual_seed(seed_for(seed, step, stream))


def uniform(low: float, high: float, size: int, rng: torch.Generator) -> Tensor:
    """`size` numbers from U[low, high), float32, on the generator's device."""
    return low + (high - low) * torch.rand(size, generator=rng, device=rng.device)


def random_linear(inputs: int, outputs: int, rng: torch.Generator) -> nn.Linear:
    """nn.Linear on the generator's device with torch's default initialisation, U[-1/sqrt(inputs),
    1/sqrt(inputs)], drawn from `rng`."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device=rng.device)
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(
                torch.rand(parameter.shape, generator=rng, device=rng.device) * 2 * bound - bound
            )
    return layer
