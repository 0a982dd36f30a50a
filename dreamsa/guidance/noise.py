"""Arithmetic of diffusion models: noising, prediction types and guidance, in float32.

Notation: latents z, noise e, alpha_bar a; noisy latents are sqrt(a) z + sqrt(1 - a) e.
"""

from jaxtyping import Float, Int64
from torch import Tensor

Latents = Float[Tensor, "b c h w"]
Timesteps = Int64[Tensor, "b"]


def per_view(values: Float[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
    return values.view(-1, 1, 1, 1)


def add_noise(latents: Latents, noise: Latents, alpha_bar: Float[Tensor, "b"]) -> Latents:
    """sqrt(a) z + sqrt(1 - a) e."""
    a = per_view(alpha_bar)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def clean_from_noise(noisy: Latents, noise: Latents, alpha_bar: Float[Tensor, "b"]) -> Latents:
    """The latents that a noise prediction implies: (noisy - sqrt(1 - a) e) / sqrt(a)."""
    a = per_view(alpha_bar)
    return (noisy - (1 - a).sqrt() * noise) / a.sqrt()


def epsilon_from_v(v: Latents, noisy: Latents, alpha_bar: Float[Tensor, "b"]) -> Latents:
    """Noise implied by a v-prediction: sqrt(a) v + sqrt(1 - a) noisy (arXiv:2202.00512, app. D)."""
    a = per_view(alpha_bar)
    return a.sqrt() * v + (1 - a).sqrt() * noisy


def classifier_free_guidance(unconditional: Latents, conditional: Latents, scale: float) -> Latents:
    """unconditional + scale * (conditional - unconditional): scale = 1 is the conditional model.

    As in diffusers; the s of arXiv:2207.12598, eq. 6, is scale - 1.
    """
    return unconditional + scale * (conditional - unconditional)


def perpendicular_guidance(
    unconditional: Latents,
    conditional: Latents,
    negatives: Float[Tensor, "b k c h w"],
    weights: Float[Tensor, "b k"],
    scale: float,
) -> Latents:
    """Perp-Neg (arXiv:2304.04968): repel from other views' prompts, orthogonally to the guidance.

    Args:
        negatives: Predictions for the other views' prompts.
        weights: At most 0; all 0 is classifier-free guidance.
    """
    guidance = (conditional - unconditional)[:, None]
    repelled = negatives - unconditional[:, None]
    dims = (-3, -2, -1)
    square = guidance.square().sum(dims, keepdim=True).clamp(min=1e-12)
    orthogonal = repelled - (repelled * guidance).sum(dims, keepdim=True) / square * guidance
    repulsion = (weights[:, :, None, None, None] * orthogonal).sum(1)
    return unconditional + scale * (guidance[:, 0] + repulsion)
