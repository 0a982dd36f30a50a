"""A Gaussian mixture whose score is exact: what score distillation is tested against."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dreamsa.guidance.score_model import Condition
from dreamsa.sds import classifier_free_guidance, per_view


@dataclass
class GaussianMixture:
    """Clean latents distributed as sum_k weights[k] N(means[k], sigma^2 I); without text as N(0, prior_sigma^2 I).

    Latents are the images themselves. Every text means the same mixture. After noising, component k is
    N(sqrt(a) mean_k, a sigma^2 + 1 - a), so the ideal noise prediction -sqrt(1 - a) * score is known in closed form.
    """

    means: Float[Tensor, "k c h w"]
    weights: Float[Tensor, "k"]  # positive, summing to 1
    sigma: float
    alpha_bar: Float[Tensor, "timesteps"]
    prior_sigma: float = 1.0

    def embed(self, texts: list[str]) -> Float[Tensor, "n 1 1"]:
        return torch.zeros(len(texts), 1, 1, device=self.means.device)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return images

    def predict_noise(
        self, noisy: Float[Tensor, "b c h w"], timesteps: Int64[Tensor, "b"], condition: Condition, guidance_scale: float
    ) -> Float[Tensor, "b c h w"]:
        a = per_view(self.alpha_bar[timesteps])
        return classifier_free_guidance(self._prior_noise(noisy, a), self._mixture_noise(noisy, a), guidance_scale)

    def _prior_noise(self, noisy: Tensor, a: Tensor) -> Tensor:
        return (1 - a).sqrt() * noisy / (a * self.prior_sigma**2 + 1 - a)

    def _mixture_noise(self, noisy: Tensor, a: Tensor) -> Tensor:
        variance = a * self.sigma**2 + 1 - a
        away = noisy[:, None] - a[:, None].sqrt() * self.means  # [b, k, c, h, w]
        log_density = -away.square().sum((2, 3, 4)) / (2 * variance.view(-1, 1)) + self.weights.log()
        share = log_density.softmax(1)[:, :, None, None, None]
        return (1 - a).sqrt() / variance * (share * away).sum(1)
