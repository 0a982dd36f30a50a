"""Methods of score distillation as pure functions: predictions of noise to a gradient in the
latents, in float32.

Notation: latents z; noise e; alpha^2 + sigma^2 = 1; noisy latents x = alpha z + sigma e; a noise
prediction eps implies the image x0(eps) = (x - sigma eps) / alpha. The guided prediction is
E(s) = eps_negative + s (eps_positive - eps_negative), where the negative prompt is empty by
default. The gradient of a method is that of its loss in z, the prediction held constant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.choices import MethodName, Role
from dreamsa.config import DistillConfig
from dreamsa.guidance.noise import (
    Latents,
    Timesteps,
    add_noise,
    classifier_free_guidance,
    clean_from_noise,
    per_view,
    perpendicular_guidance,
)


@runtime_checkable
class Predict(Protocol):
    """A score model and the texts of one step's views."""

    def __call__(self, noisy: Latents, timesteps: Timesteps, *roles: Role) -> tuple[Latents, ...]:
        """One noise prediction per role."""
        ...


@dataclass(frozen=True)
class Noised:
    """Latents of one step's views, noised."""

    latents: Latents
    noise: Latents
    timesteps: Timesteps
    predict: Predict
    alpha_bar: Float[Tensor, "timesteps"]
    """Of the model."""
    progress: float = 0.0
    """Fraction of the run, in [0, 1)."""
    repulsion: Float[Tensor, "b 2"] | None = None
    """Perp-Neg's weights of front and side, at most 0."""
    source: Latents | None = None
    """dds: the parent's latents from the same views."""

    @property
    def noisy(self) -> Latents:
        return add_noise(self.latents, self.noise, self.alpha_bar[self.timesteps])

    def guided(
        self, noisy: Latents, timesteps: Timesteps, config: DistillConfig
    ) -> tuple[Latents, Latents]:
        """E at the configured scale, with Perp-Neg and view contrast, and the positive prediction.

        View contrast adds w (eps of this view - eps of the opposite view), so that views cannot
        agree on an object that faces backwards.
        """
        roles: list[Role] = ["negative", "positive"]
        contrasted = config.view_contrast > 0 and self.progress < config.view_contrast_until
        if self.repulsion is not None:
            roles.extend(("front", "side"))
        if contrasted:
            roles.append("opposite")
        negative, positive, *rest = self.predict(noisy, timesteps, *roles)
        scale = config.guidance_scale
        if self.repulsion is None:
            guided = classifier_free_guidance(negative, positive, scale)
        else:
            others = torch.stack(rest[:2], dim=1)
            guided = perpendicular_guidance(negative, positive, others, self.repulsion, scale)
        if contrasted:
            guided = guided + config.view_contrast * (positive - rest[-1])
        return guided, positive

    @property
    def ratio(self) -> Float[Tensor, "b 1 1 1"]:
        """sigma / alpha."""
        a = per_view(self.alpha_bar[self.timesteps])
        return ((1 - a) / a).sqrt()


def sds_weight(alpha_bar: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Weight of a timestep: sigma^2."""
    return 1 - alpha_bar


def _weight(at: Noised) -> Float[Tensor, "b 1 1 1"]:
    return per_view(sds_weight(at.alpha_bar[at.timesteps]))


def sds(at: Noised, config: DistillConfig) -> Latents:
    """sigma^2 (E - e): score distillation sampling (DreamFusion, arXiv:2209.14988, eq. 3)."""
    guided, _ = at.guided(at.noisy, at.timesteps, config)
    return _weight(at) * (guided - at.noise)


def rescaled(at: Noised, config: DistillConfig) -> Latents:
    """z - r x0(E), r the factor that gives x0(E) the standard deviation of x0(eps_positive), by the
    fraction `rescale` (MVDream, arXiv:2308.16512; the standard deviation is over all views)."""
    noisy, a = at.noisy, at.alpha_bar[at.timesteps]
    guided, positive = at.guided(noisy, at.timesteps, config)
    image, conditional = (clean_from_noise(noisy, eps, a) for eps in (guided, positive))
    factor = conditional.std() / image.std().clamp(min=1e-8)
    return at.latents - image * (config.rescale * factor + 1 - config.rescale)


def csd(at: Noised, config: DistillConfig) -> Latents:
    """sigma^2 s (eps_positive - eps_other), the other sliding from no text to the negative prompt
    over the first half of the run (classifier score distillation, arXiv:2310.19415)."""
    roles: tuple[Role, ...] = ("null", "positive", "negative")
    null, positive, negative = at.predict(at.noisy, at.timesteps, *roles)
    slid = min(2 * at.progress, 1.0)
    other = (1 - slid) * null + slid * negative
    return _weight(at) * config.guidance_scale * (positive - other)


NFSD_CLEAN = 200
"""Timestep below which no text predicts the noise alone (arXiv:2310.17590)."""


def nfsd(at: Noised, config: DistillConfig) -> Latents:
    """sigma^2 (s (eps_positive - eps_null) + d), d = eps_null below timestep 200, else
    eps_null - eps_negative (noise-free score distillation, arXiv:2310.17590)."""
    roles: tuple[Role, ...] = ("null", "positive", "negative")
    null, positive, negative = at.predict(at.noisy, at.timesteps, *roles)
    clean = (at.timesteps < NFSD_CLEAN).view(-1, 1, 1, 1)
    domain = torch.where(clean, null, null - negative)
    return _weight(at) * (config.guidance_scale * (positive - null) + domain)


def invert(at: Noised, end: Timesteps, scale: float, steps: int) -> tuple[Latents, Latents]:
    """DDIM inversion from the latents, taken as timestep 0, to `end` (arXiv:2010.02502).

    Args:
        scale: Of guidance; 0 is the negative prompt alone.

    Returns:
        The noisy latents at `end`, and the last noise prediction.
    """
    noisy, eps = at.latents, torch.zeros_like(at.latents)
    here, alpha_bar = torch.zeros_like(end), torch.ones_like(at.alpha_bar[end])
    for k in range(1, steps + 1):
        roles: tuple[Role, ...] = ("negative", "positive") if scale else ("negative",)
        negative, *positive = at.predict(noisy, here, *roles)
        eps = classifier_free_guidance(negative, positive[0], scale) if positive else negative
        clean = clean_from_noise(noisy, eps, alpha_bar)
        here = (end * k / steps).round().long()
        alpha_bar = at.alpha_bar[here]
        noisy = add_noise(clean, eps, alpha_bar)
    return noisy, eps


def ism(at: Noised, config: DistillConfig) -> Latents:
    """sigma / alpha (E(x_t) - eps_negative(x_s)), x_s by unconditional DDIM inversion and x_t one
    step of `interval` later (interval score matching, LucidDreamer, arXiv:2311.11284)."""
    first, last = config.interval
    interval = (first + (last - first) * at.progress) * len(at.alpha_bar)
    before = (at.timesteps - round(interval)).clamp(min=0)
    noisy, _ = invert(at, before, 0.0, config.inversion_steps)
    (eps,) = at.predict(noisy, before, "negative")
    clean = clean_from_noise(noisy, eps, at.alpha_bar[before])
    later = add_noise(clean, eps, at.alpha_bar[at.timesteps])
    guided, _ = at.guided(later, at.timesteps, config)
    return at.ratio * (guided - eps)


def sdi(at: Noised, config: DistillConfig) -> Latents:
    """z - x0(E(x)), x noised with the noise that guided DDIM inversion finds, a part of it fresh
    (score distillation via inversion, arXiv:2405.15891)."""
    a = at.alpha_bar[at.timesteps]
    inverted, _ = invert(at, at.timesteps, config.inversion_scale, config.inversion_steps)
    found = (inverted - per_view(a).sqrt() * at.latents) / (1 - per_view(a)).sqrt()
    fresh = config.inversion_noise
    noisy = add_noise(at.latents, (1 - fresh**2) ** 0.5 * found + fresh * at.noise, a)
    guided, _ = at.guided(noisy, at.timesteps, config)
    return at.latents - clean_from_noise(noisy, guided, a)


def consistent(at: Noised, config: DistillConfig) -> Latents:
    """sigma / alpha (E - e), for the noise of `dreamsa.distill.noise` that moves with the camera
    (FSD, arXiv:2405.10988; consistent flow distillation, arXiv:2501.05445)."""
    guided, _ = at.guided(at.noisy, at.timesteps, config)
    return at.ratio * (guided - at.noise)


def bridge(at: Noised, config: DistillConfig) -> Latents:
    """sds until `bridge_from`; from then on sigma^2 s (eps_positive - eps_degraded), away from the
    prompt of a bad render (SDS as a bridge, arXiv:2406.09417)."""
    if at.progress < config.bridge_from:
        return sds(at, config)
    positive, degraded = at.predict(at.noisy, at.timesteps, "positive", "degraded")
    return _weight(at) * config.guidance_scale * (positive - degraded)


def dds(at: Noised, config: DistillConfig) -> Latents:
    """sigma^2 (E(x) - E_source(x_source)): away from the parent's prompt on the parent's image, by
    the same noise, so that what the prompts share cancels (delta denoising score,
    arXiv:2304.07090)."""
    assert at.source is not None, "only an edit has a source"
    guided, _ = at.guided(at.noisy, at.timesteps, config)
    noisy = add_noise(at.source, at.noise, at.alpha_bar[at.timesteps])
    negative, positive = at.predict(noisy, at.timesteps, "negative", "source")
    source = classifier_free_guidance(negative, positive, config.guidance_scale)
    return _weight(at) * (guided - source)


Method = Callable[[Noised, DistillConfig], Latents]

METHODS: dict[MethodName, Method] = {
    "sds": sds,
    "rescaled": rescaled,
    "csd": csd,
    "nfsd": nfsd,
    "ism": ism,
    "sdi": sdi,
    "consistent": consistent,
    "bridge": bridge,
    "dds": dds,
}


def clip_per_view(grad: Latents, max_norm: float) -> Latents:
    """Clip the norm of each view's gradient to `max_norm`; 0 is off."""
    if max_norm == 0:
        return grad
    norms = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return grad * (max_norm / norms.clamp(min=1e-12)).clamp(max=1)


def distillation_loss(latents: Latents, grad: Latents) -> Float[Tensor, ""]:
    """Loss <grad, latents> / b, whose gradient in the latents is `grad / b`.

    Linear, so that factors on the loss scale the gradient, sign included; the usual
    0.5 |z - (z - grad)|^2 has the same value for ascent and descent.
    """
    return (grad.detach().float() * latents.float()).sum() / len(latents)
