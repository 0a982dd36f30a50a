"""What the training loop needs of a diffusion model."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float32, Int64
from torch import Tensor


class GuidanceFailed(RuntimeError):
    """The score model returned NaN or infinity, and too often to go on."""


@dataclass(frozen=True)
class Condition:
    """What a noise prediction is conditioned on, per view."""

    positive: Float[Tensor, "b tokens width"]
    """Embeddings of the wanted text."""
    negative: Float[Tensor, "b tokens width"]
    """Embeddings of the negative (by default empty) prompt."""
    unwanted: Float[Tensor, "b k tokens width"] | None = None
    """Perp-Neg: embeddings of the other views' texts."""
    unwanted_weights: Float[Tensor, "b k"] | None = None
    """Perp-Neg: weights, at most 0."""


@runtime_checkable
class ScoreModel(Protocol):
    """A latent diffusion model with a frozen score."""

    alpha_bar: Float32[Tensor, "timesteps"]
    """Cumulative product of 1 - beta."""

    def embed(self, texts: list[str]) -> Float[Tensor, "n tokens width"]:
        """Text embeddings."""
        ...

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b c latent_h latent_w"]:
        """Images in [0, 1] to scaled latents, differentiable in the images."""
        ...

    def predict_noise(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Int64[Tensor, "b"], condition: Condition, guidance_scale: float
    ) -> Float32[Tensor, "b c h w"]:
        """The guided noise prediction for noisy latents."""
        ...
