"""A Gaussian mixture with an exact score, for tests of score distillation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.guidance.noise import Latents, Timesteps, per_view


@dataclass
class GaussianMixture:
    """Latents distributed as sum_k weights[k] N(means[k], sigma^2 I).

    Without text it is N(0, prior_sigma^2 I); all texts but the empty one are
    equivalent. Latents are the images.
    After noising, component k is N(sqrt(a) mean_k, a sigma^2 + 1 - a), so the ideal noise
    prediction -sqrt(1 - a) * score has a closed form.
    """

    means: Float[Tensor, "k c h w"]
    weights: Float[Tensor, "k"]  # positive, summing to 1
    sigma: float
    alpha_bar: Float[Tensor, "timesteps"]
    prior_sigma: float = 1.0

    def embed(self, texts: list[str]) -> Float[Tensor, "n 1 1"]:
        named = torch.tensor([float(bool(text)) for text in texts], device=self.means.device)
        return named[:, None, None]

    def encode(self, images: Latents) -> Latents:
        return images

    def predict_noise(
        self, noisy: Latents, timesteps: Timesteps, texts: Float[Tensor, "k b 1 1"]
    ) -> tuple[Latents, ...]:
        """Of N(0, prior_sigma^2 I) where a text's embedding is 0, of the mixture where it is 1."""
        a = per_view(self.alpha_bar[timesteps])
        prior = (1 - a).sqrt() * noisy / (a * self.prior_sigma**2 + 1 - a)
        variance = a * self.sigma**2 + 1 - a
        offset = noisy[:, None] - a[:, None].sqrt() * self.means  # [b, k, c, h, w]
        log_likelihood = -offset.square().sum((2, 3, 4)) / (2 * variance.view(-1, 1))
        responsibility = (log_likelihood + self.weights.log()).softmax(1)[:, :, None, None, None]
        mixture = (1 - a).sqrt() / variance * (responsibility * offset).sum(1)
        return tuple(torch.where(text[:, :, :, None] > 0, mixture, prior) for text in texts)
