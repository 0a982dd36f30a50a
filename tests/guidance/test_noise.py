import torch
from diffusers import DDPMScheduler

from dreamsa.guidance.noise import (
    add_noise,
    classifier_free_guidance,
    epsilon_from_v,
    per_view,
    perpendicular_guidance,
)

ALPHA_BAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def test_guidance_order_and_convention():
    """scale 1 is the conditional model, 0 the unconditional; swapped halves would push away from
    the text."""
    unconditional, conditional = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 3.0)
    assert [
        classifier_free_guidance(unconditional, conditional, s).item() for s in (0, 1, 100)
    ] == [1, 3, 201]


def test_perpendicular_guidance_without_weights_is_plain_guidance(rng):
    u, c = torch.randn(2, 3, 4, 4, generator=rng), torch.randn(2, 3, 4, 4, generator=rng)
    negatives = torch.randn(2, 2, 3, 4, 4, generator=rng)
    plain = classifier_free_guidance(u, c, 7.5)
    guided = perpendicular_guidance(u, c, negatives, torch.zeros(2, 2), 7.5)
    torch.testing.assert_close(guided, plain)


def test_perpendicular_guidance_repels_only_orthogonally(rng):
    u, c = torch.randn(2, 3, 4, 4, generator=rng), torch.randn(2, 3, 4, 4, generator=rng)
    negatives = torch.randn(2, 2, 3, 4, 4, generator=rng)
    repulsion = perpendicular_guidance(u, c, negatives, -torch.ones(2, 2), 1.0) - c
    assert (repulsion * (c - u)).flatten(1).sum(1).abs().max() < 1e-3
    assert repulsion.norm() > 1


def test_v_prediction_implies_the_same_noise(rng):
    clean, noise = torch.randn(4, 1, 2, 2, generator=rng), torch.randn(4, 1, 2, 2, generator=rng)
    a = ALPHA_BAR[torch.tensor([0, 100, 500, 999])]
    noisy = add_noise(clean, noise, a)
    v = per_view(a).sqrt() * noise - (1 - per_view(a)).sqrt() * clean
    torch.testing.assert_close(epsilon_from_v(v, noisy, a), noise, atol=1e-5, rtol=1e-5)


def test_noisy_latents_agree_with_diffusers(rng):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    clean, noise = torch.randn(3, 1, 2, 2, generator=rng), torch.randn(3, 1, 2, 2, generator=rng)
    timesteps = torch.tensor([0, 500, 999])
    noisy = add_noise(clean, noise, scheduler.alphas_cumprod[timesteps])
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps))


def test_a_perfect_prediction_implies_the_clean_latents(rng):
    clean, noise = torch.randn(3, 1, 2, 2, generator=rng), torch.randn(3, 1, 2, 2, generator=rng)
    alpha_bar = ALPHA_BAR[torch.tensor([10, 500, 900])]
    a = per_view(alpha_bar)
    implied = (add_noise(clean, noise, alpha_bar) - (1 - a).sqrt() * noise) / a.sqrt()
    torch.testing.assert_close(implied, clean, atol=1e-4, rtol=1e-4)
