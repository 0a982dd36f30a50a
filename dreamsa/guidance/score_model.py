"""Interface between the training loop and a diffusion model."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float32
from torch import Tensor

from dreamsa.guidance.noise import Latents, Timesteps


class GuidanceFailed(RuntimeError):
    """The score model returned NaN or infinity too often to continue."""


@runtime_checkable
class ScoreModel(Protocol):
    """A latent diffusion model with a frozen score."""

    alpha_bar: Float32[Tensor, "timesteps"]
    """Cumulative product of 1 - beta."""

    def embed(self, texts: list[str]) -> Float[Tensor, "n tokens width"]: ...

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b c latent_h latent_w"]:
        """Scaled latents of images in [0, 1], differentiable in the images."""
        ...

    def predict_noise(
        self, noisy: Latents, timesteps: Timesteps, texts: Float[Tensor, "k b tokens width"]
    ) -> tuple[Latents, ...]:
        """k predictions of the noise in the same noisy latents, one per text."""
        ...
