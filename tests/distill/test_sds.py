"""Score distillation against a score model with closed forms."""

import pytest
import torch
from analytic import GaussianMixture

from dreamsa.config import SDSConfig
from dreamsa.distill.sds import clip_per_view, sds_loss, sds_weight
from dreamsa.guidance.noise import add_noise, per_view
from dreamsa.guidance.score_model import Condition

ALPHA_BAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
NOTHING = Condition(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))


def mixture(*means, weights=None, sigma=0.1, prior_sigma=1.0):
    values = torch.stack([torch.full((1, 2, 2), float(m)) for m in means])
    fractions = torch.tensor(weights) if weights else torch.full((len(means),), 1 / len(means))
    return GaussianMixture(values, fractions, sigma, ALPHA_BAR, prior_sigma)


def gradient(score, latents, timestep, noise, scale=1.0):
    timesteps = torch.full((len(latents),), timestep)
    a = ALPHA_BAR[timesteps]
    predicted = score.predict_noise(add_noise(latents, noise, a), timesteps, NOTHING, scale)
    return per_view(sds_weight(a)) * (predicted - noise)


def test_expected_gradient_is_the_closed_form(rng):
    """For p = N(m, s^2): E[g] = w sqrt(1-a) sqrt(a) (z - m) / (a s^2 + 1 - a)."""
    score, timestep, z = mixture(0.7, sigma=0.3), 400, torch.full((20_000, 1, 2, 2), -0.2)
    a = ALPHA_BAR[timestep]
    grad = gradient(score, z, timestep, torch.randn(z.shape, generator=rng))
    expected = (1 - a) * ((1 - a) * a).sqrt() * (-0.2 - 0.7) / (a * 0.09 + 1 - a)
    assert grad.mean().item() == pytest.approx(
        expected.item(), abs=4 * (grad.std() / grad.numel() ** 0.5).item()
    )


def test_the_score_of_the_mixture_is_the_gradient_of_its_log_density(rng):
    """eps = -sqrt(1 - a) grad log p_t, the density differentiated by autograd."""
    score, timestep = mixture(-1.0, 0.5, weights=[0.2, 0.8], sigma=0.3), 300
    a = ALPHA_BAR[timestep].double()
    noisy = torch.randn(5, 1, 2, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    variance = a * 0.09 + 1 - a
    away = noisy[:, None] - a.sqrt() * score.means.double()
    log_density = (
        score.weights.double().log() - away.square().sum((2, 3, 4)) / (2 * variance)
    ).logsumexp(1)
    (slope,) = torch.autograd.grad(log_density.sum(), noisy)
    predicted = score.predict_noise(
        noisy.detach().float(), torch.full((5,), timestep), NOTHING, 1.0
    )
    torch.testing.assert_close(predicted, (-(1 - a).sqrt() * slope).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_descent_reaches_the_fixed_point_of_guidance(scale):
    """Without noise, z converges to where the guided prediction equals the added noise."""
    score, z, timestep = mixture(0.8, sigma=0.5), torch.zeros(1, 1, 2, 2), 500
    noise = torch.zeros_like(z)
    for _ in range(3000):
        z = z - 0.2 * gradient(score, z, timestep, noise, scale)
    a = ALPHA_BAR[timestep].item()
    variance = a * 0.25 + 1 - a  # the conditional's; the prior's is 1
    expected = scale * 0.8 / variance / ((1 - scale) + scale / variance)
    assert z.mean().item() == pytest.approx(expected, abs=1e-3)


def test_ascent_moves_away_monotonically():
    score, z, noise = (
        mixture(0.0, sigma=0.2),
        torch.full((1, 1, 2, 2), 0.1),
        torch.zeros(1, 1, 2, 2),
    )
    sizes = []
    for _ in range(50):
        z = z + 0.05 * gradient(score, z, 300, noise)
        sizes.append(z.norm().item())
    assert all(b > a for a, b in zip(sizes, sizes[1:], strict=False))


def test_loss_gradient_is_exact_and_linear(rng):
    latents, grad = (torch.randn(3, 4, 2, 2, generator=rng, requires_grad=r) for r in (True, False))
    (once,) = torch.autograd.grad(sds_loss(latents, grad), latents)
    (twice,) = torch.autograd.grad(2 * sds_loss(latents, grad), latents)
    torch.testing.assert_close(once, grad / 3)
    torch.testing.assert_close(twice, 2 * once)


def test_loss_tells_ascent_from_descent(rng):
    latents, grad = torch.randn(2, 4, 2, 2, generator=rng), torch.randn(2, 4, 2, 2, generator=rng)
    assert sds_loss(latents, grad).item() == pytest.approx(-sds_loss(latents, -grad).item())
    assert sds_loss(latents, grad).item() != pytest.approx(0.5 * grad.square().sum().item() / 2)


def test_loss_keeps_small_gradients_in_half_precision():
    """z - g in float16 would swallow a gradient of 1e-5 beside a latent of 1."""
    latents = torch.ones(1, 1, 1, 1, dtype=torch.float16, requires_grad=True)
    (got,) = torch.autograd.grad(sds_loss(latents, torch.full((1, 1, 1, 1), 1e-5)), latents)
    assert got.item() == pytest.approx(1e-5, rel=0.01)


def test_clipping_is_per_view():
    grad = torch.stack([torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 0.1)])
    clipped = clip_per_view(grad, 1.0)
    torch.testing.assert_close(clipped.flatten(1).norm(dim=1), torch.tensor([1.0, 0.2]))
    assert clip_per_view(grad, 0.0) is grad


@pytest.mark.parametrize(
    "bad",
    [
        {"guidance_scale": -1.0},
        {"min_timestep": (0.5, 0.9), "max_timestep": (0.98, 0.5)},
        {"anneal_until": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="sds"):
        SDSConfig(**bad)
