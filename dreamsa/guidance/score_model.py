"""What the training loop needs of a diffusion model."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What a noise prediction is conditioned on, per view."""

    positive: Tensor
    """Embeddings of the wanted text, [b, tokens, width]."""
    negative: Tensor
    """Embeddings of the negative (by default empty) prompt, [b, tokens, width]."""
    unwanted: Tensor | None = None
    """Perp-Neg: embeddings of the other views' texts, [b, k, tokens, width]."""
    unwanted_weights: Tensor | None = None
    """Perp-Neg: weights [b, k], at most 0."""


class ScoreModel(Protocol):
    """A latent diffusion model with a frozen score."""

    alpha_bar: Tensor
    """Cumulative product of 1 - beta, [timesteps]."""

    def embed(self, texts: list[str]) -> Tensor:
        """Text embeddings [n, tokens, width]."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images [b, 3, h, w] in [0, 1] to scaled latents [b, c, h', w'], differentiable in the images."""
        ...

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        """The guided noise prediction, float32 [b, c, h', w'], for noisy latents at timesteps int64 [b]."""
        ...
