"""Score distillation sampling as pure functions (DreamFusion, arXiv:2209.14988).

Notation: latents z, noise e, alpha_bar a: noisy latents are sqrt(a) z + sqrt(1 - a) e. All arithmetic is float32.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class SDSConfig:
    guidance_scale: float = 100.0
    """Classifier-free guidance; 1 is the conditional model itself."""
    min_timestep: tuple[float, float] = (0.02, 0.02)
    """Smallest timestep as a fraction of the schedule, at the first step and from `anneal_until` on."""
    max_timestep: tuple[float, float] = (0.98, 0.98)
    """Largest timestep, likewise."""
    anneal_until: float = 1.0
    """Share of the run over which both move linearly."""
    max_grad_norm: float = 0.0
    """Clip the latent gradient of each view to this norm; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        if not 0 <= self.guidance_scale <= 1000:
            raise ValueError(f"sds.guidance_scale must lie in [0, 1000], got {self.guidance_scale}.")
        for low, high in zip(self.min_timestep, self.max_timestep, strict=True):
            if not 0 <= low < high <= 1:
                raise ValueError(f"sds.min_timestep must lie below sds.max_timestep and both in [0, 1], got {low} and {high}.")
        if not 0 < self.anneal_until <= 1:
            raise ValueError(f"sds.anneal_until must lie in (0, 1], got {self.anneal_until}.")
        if self.max_grad_norm < 0:
            raise ValueError(f"sds.max_grad_norm must be at least 0, got {self.max_grad_norm}.")


def timestep_range(config: SDSConfig, step: int, total: int, timesteps: int = 1000) -> tuple[int, int]:
    """The inclusive range that timesteps of `step` of `total` are drawn from."""
    progress = min(step / max(config.anneal_until * total, 1), 1.0)
    low, high = (start + (end - start) * progress for start, end in (config.min_timestep, config.max_timestep))
    last = timesteps - 1
    return min(round(low * timesteps), last), min(round(high * timesteps), last)


def sample_timesteps(
    config: SDSConfig, step: int, total: int, count: int, rng: torch.Generator, timesteps: int = 1000
) -> Int64[Tensor, "{count}"]:
    """One timestep per view, uniform over `timestep_range`."""
    low, high = timestep_range(config, step, total, timesteps)
    return torch.randint(low, high + 1, (count,), generator=rng, device=rng.device)


def per_view(values: Float[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
    """One value per view, to multiply latents with."""
    return values.view(-1, 1, 1, 1)


def add_noise(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], alpha_bar: Float[Tensor, "b"]
) -> Float[Tensor, "b c h w"]:
    """sqrt(a) z + sqrt(1 - a) e."""
    a = per_view(alpha_bar)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def epsilon_from_v(v: Float[Tensor, "b c h w"], noisy: Float[Tensor, "b c h w"], alpha_bar: Float[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
    """The noise that a v-prediction means: sqrt(a) v + sqrt(1 - a) noisy (arXiv:2202.00512, app. D)."""
    a = per_view(alpha_bar)
    return a.sqrt() * v + (1 - a).sqrt() * noisy


def predicted_original(
    noisy: Float[Tensor, "b c h w"], epsilon: Float[Tensor, "b c h w"], alpha_bar: Float[Tensor, "b"]
) -> Float[Tensor, "b c h w"]:
    """The clean latents that a noise prediction means. Uses alpha_bar, the cumulative product, not 1 - beta."""
    a = per_view(alpha_bar)
    return (noisy - (1 - a).sqrt() * epsilon) / a.sqrt()


def classifier_free_guidance(
    unconditional: Float[Tensor, "b c h w"], conditional: Float[Tensor, "b c h w"], scale: float
) -> Float[Tensor, "b c h w"]:
    """unconditional + scale * (conditional - unconditional): scale = 1 is the conditional model.

    The convention of diffusers and stable-dreamfusion. The CFG paper (arXiv:2207.12598, eq. 6) and threestudio's plain
    branch write conditional + s * (conditional - unconditional); their s is our scale - 1.
    """
    return unconditional + scale * (conditional - unconditional)


def perpendicular_guidance(
    unconditional: Float[Tensor, "b c h w"],
    conditional: Float[Tensor, "b c h w"],
    negatives: Float[Tensor, "b k c h w"],
    weights: Float[Tensor, "b k"],
    scale: float,
) -> Float[Tensor, "b c h w"]:
    """Perp-Neg (arXiv:2304.04968): push away from other views' prompts, but only across the wanted direction.

    Args:
        negatives: Predictions for the unwanted prompts.
        weights: At most 0. All 0 gives plain classifier-free guidance.
    """
    wanted = conditional - unconditional
    away = negatives - unconditional[:, None]
    dims = (-3, -2, -1)
    along = (away * wanted[:, None]).sum(dims, keepdim=True) / wanted[:, None].square().sum(dims, keepdim=True).clamp(min=1e-12)
    across = away - along * wanted[:, None]
    push = (weights[:, :, None, None, None] * across).sum(1)
    return unconditional + scale * (wanted + push)


def sds_weight(alpha_bar: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """w(t) = 1 - alpha_bar."""
    return 1 - alpha_bar


def clip_per_view(grad: Float[Tensor, "b c h w"], max_norm: float) -> Float[Tensor, "b c h w"]:
    """Scale each view's gradient down to at most `max_norm`; 0 leaves all as they are."""
    if max_norm == 0:
        return grad
    norms = per_view(grad.flatten(1).norm(dim=1))
    return grad * (max_norm / norms.clamp(min=1e-12)).clamp(max=1)


def sds_loss(latents: Float[Tensor, "b c h w"], grad: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """A scalar whose gradient in the latents is `grad / b`, and whose value is <grad, latents> / b.

    Linear, so factors on the loss reach the gradient, and its sign is the sign of the update; the usual
    0.5 |z - (z - grad)|^2 prints the same number for ascent and descent.
    """
    return (grad.detach().float() * latents.float()).sum() / len(latents)
