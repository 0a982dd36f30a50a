"""Methods of score distillation against closed forms.

The model of most tests: for the text of a role, each pixel is N(m, s^2) with the role's m and s.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

import pytest
import torch
from analytic import GaussianMixture
from torch import Tensor

from dreamsa.choices import MethodName, Role
from dreamsa.config import DistillConfig
from dreamsa.distill.methods import (
    METHODS,
    Noised,
    clip_per_view,
    distillation_loss,
    invert,
)
from dreamsa.guidance.noise import (
    add_noise,
    per_view,
    perpendicular_guidance,
)

ALPHA_BAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).double()
WORLD: dict[Role, tuple[float, float]] = {
    "positive": (0.7, 0.3),
    "negative": (-0.4, 0.8),
    "null": (0.0, 1.0),
    "opposite": (-0.9, 0.4),
    "degraded": (0.2, 0.6),
    "front": (0.5, 0.2),
    "side": (-0.2, 0.5),
    "source": (0.1, 0.4),
}
UNNAMED = {**WORLD, "negative": WORLD["null"]}
"""The negative prompt is empty."""


@dataclass
class Predict:
    """The exact noise predictions, and the roles that were asked for."""

    world: dict[Role, tuple[float, float]] = field(default_factory=lambda: WORLD)
    asked: list[Role] = field(default_factory=list)

    def __call__(self, noisy: Tensor, timesteps: Tensor, *roles: Role) -> tuple[Tensor, ...]:
        self.asked += roles
        a = per_view(ALPHA_BAR[timesteps])
        return tuple(
            (1 - a).sqrt() * (noisy - a.sqrt() * m) / (a * s**2 + 1 - a)
            for m, s in (self.world[role] for role in roles)
        )


def noised(timestep=400, progress=0.0, world=WORLD, repulsion=None, z=None, seed=0) -> Noised:
    rng = torch.Generator().manual_seed(seed)
    latents, noise, source = (torch.randn(3, 1, 2, 2, generator=rng).double() for _ in range(3))
    latents = latents if z is None else torch.full_like(latents, z)
    timesteps = torch.full((3,), timestep)
    if repulsion is not None:
        repulsion = torch.tensor(repulsion).double()
    predict = Predict(world)
    return Noised(latents, noise, timesteps, predict, ALPHA_BAR, progress, repulsion, source)


class Formulas:
    """The gradients, written down from the papers for one view's timestep."""

    def __init__(self, at: Noised, config: DistillConfig) -> None:
        self.at, self.config = at, config
        self.z, self.e, self.t = at.latents, at.noise, int(at.timesteps[0])
        self.s = config.guidance_scale
        self.alpha, self.sigma = self.levels(self.t)
        self.x = self.alpha * self.z + self.sigma * self.e

    def levels(self, t: int) -> tuple[float, float]:
        return ALPHA_BAR[t].item() ** 0.5, (1 - ALPHA_BAR[t].item()) ** 0.5

    def eps(self, role: Role, x=None, t=None) -> Tensor:
        x, (alpha, sigma) = self.x if x is None else x, self.levels(self.t if t is None else t)
        m, s = self.at.predict.world[role]
        return sigma * (x - alpha * m) / (alpha**2 * s**2 + sigma**2)

    def E(self, x=None, t=None, scale=None) -> Tensor:
        negative, scale = self.eps("negative", x, t), self.s if scale is None else scale
        return negative + scale * (self.eps("positive", x, t) - negative)

    def x0(self, eps: Tensor, x=None) -> Tensor:
        return ((self.x if x is None else x) - self.sigma * eps) / self.alpha

    def sds(self):
        return self.sigma**2 * (self.E() - self.e)

    def rescaled(self):
        image, c = self.x0(self.E()), self.config.rescale
        factor = self.x0(self.eps("positive")).std() / image.std()
        return self.z - image * (c * factor + 1 - c)

    def csd(self, other: Role = "null"):
        return self.sigma**2 * self.s * (self.eps("positive") - self.eps(other))

    def csd_at_a_quarter(self):
        return (self.csd() + self.csd("negative")) / 2

    def csd_at_half(self):
        return self.csd("negative")

    def nfsd(self):
        return self.csd() + self.sigma**2 * (self.eps("null") - self.eps("negative"))

    def nfsd_below_200(self):
        return self.csd() + self.sigma**2 * self.eps("null")

    def ism(self, interval=100):
        """One step of inversion to t - interval, one of `interval` to t."""
        s = max(self.t - interval, 0)
        alpha, sigma = self.levels(s)
        x = alpha * self.z + sigma * self.eps("negative", self.z, 0)
        eps = self.eps("negative", x, s)
        x = self.alpha * (x - sigma * eps) / alpha + self.sigma * eps
        return self.sigma / self.alpha * (self.E(x) - eps)

    def ism_at_half(self):
        return self.ism(75)

    def sdi(self):
        found, fresh = self.E(self.z, 0, self.config.inversion_scale), self.config.inversion_noise
        noise = (1 - fresh**2) ** 0.5 * found + fresh * self.e
        x = self.alpha * self.z + self.sigma * noise
        return self.z - self.x0(self.E(x), x)

    def consistent(self):
        return self.sigma / self.alpha * (self.E() - self.e)

    def bridge(self):
        return self.sds()

    def bridge_from_80(self):
        return self.csd("degraded")

    def dds(self):
        x = self.alpha * self.at.source + self.sigma * self.e
        negative = self.eps("negative", x)
        source = negative + self.s * (self.eps("source", x) - negative)
        return self.sigma**2 * (self.E() - source)


@pytest.mark.parametrize(
    ("formula", "given"),
    [
        ("sds", {}),
        ("rescaled", {}),
        ("csd", {}),
        ("csd_at_a_quarter", {"progress": 0.25}),
        ("csd_at_half", {"progress": 0.5}),
        ("csd_at_half", {"progress": 0.9}),
        ("nfsd", {"timestep": 200}),
        ("nfsd_below_200", {"timestep": 199}),
        ("ism", {}),
        ("ism", {"timestep": 60}),
        ("ism_at_half", {"progress": 0.5}),
        ("sdi", {}),
        ("consistent", {}),
        ("bridge", {"progress": 0.79}),
        ("bridge_from_80", {"progress": 0.8}),
        ("dds", {}),
    ],
)
def test_the_gradient_is_the_formula(formula, given):
    method, at = formula.split("_")[0], noised(**given)
    config = DistillConfig(method=method, guidance_scale=7.5, inversion_steps=1)
    expected = getattr(Formulas(at, config), formula)()
    torch.testing.assert_close(METHODS[method](at, config), expected)


def test_delta_denoising_leaves_what_fits_the_parent_alone():
    """The same prompt and image before and after: no gradient, whatever the noise."""
    at = noised(world={**WORLD, "source": WORLD["positive"]})
    at = replace(at, source=at.latents)
    found = METHODS["dds"](at, DistillConfig(guidance_scale=7.5))
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)


def test_every_method_has_a_name():
    assert tuple(METHODS) == get_args(MethodName)


def test_rescaled_without_rescaling_is_the_weight_of_the_images():
    at = noised()
    found = METHODS["rescaled"](at, DistillConfig(guidance_scale=7.5, rescale=0.0))
    torch.testing.assert_close(found, METHODS["consistent"](at, DistillConfig(guidance_scale=7.5)))


def test_a_rescaled_target_has_the_standard_deviation_of_the_conditional_image():
    at = noised()
    target = at.latents - METHODS["rescaled"](at, DistillConfig(guidance_scale=30.0, rescale=1.0))
    form = Formulas(at, DistillConfig())
    torch.testing.assert_close(target.std(), form.x0(form.eps("positive")).std())


def test_csd_with_an_empty_negative_prompt_is_constant_over_the_run():
    grads = [METHODS["csd"](noised(progress=p, world=UNNAMED), DistillConfig()) for p in (0, 0.3)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("role", ["positive", "negative"])
def test_inversion_converges_to_the_exact_flow_of_a_gaussian(role):
    """Along the probability flow of N(m, s^2), (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2) stays
    (Song et al., arXiv:2011.13456)."""
    at, (m, s) = noised(timestep=800), WORLD[role]
    alpha, sigma = Formulas(at, DistillConfig()).levels(800)
    exact = alpha * m + (alpha**2 * s**2 + sigma**2) ** 0.5 * (at.latents - m) / s
    scale = float(role == "positive")
    found = [invert(at, at.timesteps, scale, steps)[0] for steps in (4, 16, 64, 800)]
    errors = [(x - exact).abs().max().item() for x in found]
    assert all(later < 0.5 * earlier for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.01 * (at.latents - m).abs().max().item()


def test_inversion_returns_its_last_prediction_and_guides_it():
    at = noised()
    form = Formulas(at, DistillConfig())
    for scale in (-7.5, 1.0):
        noisy, eps = invert(at, at.timesteps, scale, 1)
        torch.testing.assert_close(eps, form.E(at.latents, 0, scale))
        torch.testing.assert_close(noisy, add_noise(at.latents, eps, ALPHA_BAR[at.timesteps]))


def test_the_gradient_of_sdi_vanishes_in_expectation_at_the_mean():
    """Linear in the fresh noise, so that noise of both signs cancels."""
    at = noised(z=WORLD["positive"][0])
    opposite = Noised(at.latents, -at.noise, at.timesteps, at.predict, ALPHA_BAR)
    config = DistillConfig(guidance_scale=1.0, inversion_scale=1.0)
    one, other = (METHODS["sdi"](views, config) for views in (at, opposite))
    assert one.abs().min() > 1e-3
    torch.testing.assert_close(one + other, torch.zeros_like(one), atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", ["sds", "consistent", "ism"])
@pytest.mark.parametrize(("until", "weight"), [(0.5, 1.0), (0.4, 0.0)])
def test_view_contrast_adds_the_difference_of_opposite_views_until_its_end(method, until, weight):
    plain, at = DistillConfig(guidance_scale=7.5, inversion_steps=1), noised(progress=0.4)
    contrasted = DistillConfig(
        guidance_scale=7.5, inversion_steps=1, view_contrast=3.0, view_contrast_until=until
    )
    seen: list[Tensor] = []
    inner = at.predict

    def spy(noisy: Tensor, timesteps: Tensor, *roles: Role) -> tuple[Tensor, ...]:
        seen.append(noisy)
        return inner(noisy, timesteps, *roles)

    watched = Noised(at.latents, at.noise, at.timesteps, spy, ALPHA_BAR, at.progress)
    added = METHODS[method](watched, contrasted) - METHODS[method](at, plain)
    form = Formulas(at, plain)
    factor = form.sigma**2 if method == "sds" else form.sigma / form.alpha
    difference = form.eps("positive", seen[-1]) - form.eps("opposite", seen[-1])
    torch.testing.assert_close(added, weight * factor * 3.0 * difference)


def test_perp_neg_repels_and_with_zero_weights_is_plain_guidance():
    config, weights = DistillConfig(guidance_scale=7.5), [[-1.0, -0.5], [0.0, -2.0], [0.0, 0.0]]
    plain, zero, perp = (noised(repulsion=r) for r in (None, [[0.0, 0.0]] * 3, weights))
    expected, _ = plain.guided(plain.noisy, plain.timesteps, config)
    torch.testing.assert_close(zero.guided(zero.noisy, zero.timesteps, config)[0], expected)
    form = Formulas(plain, config)
    others = torch.stack([form.eps("front"), form.eps("side")], dim=1)
    pair = form.eps("negative"), form.eps("positive")
    expected = perpendicular_guidance(*pair, others, torch.tensor(weights).double(), 7.5)
    torch.testing.assert_close(perp.guided(perp.noisy, perp.timesteps, config)[0], expected)


@pytest.mark.parametrize(
    ("method", "calls", "guided"),
    [
        ("sds", 2, True),
        ("rescaled", 2, True),
        ("csd", 3, False),
        ("nfsd", 3, False),
        ("ism", 4 + 1 + 2, True),
        ("sdi", 4 * 2 + 2, True),
        ("consistent", 2, True),
        ("bridge", 2, True),
    ],
)
def test_number_of_noise_predictions(method, calls, guided):
    """View contrast takes one more and Perp-Neg two, in the methods that use E."""
    zero = [[0.0, 0.0]] * 3
    for contrast, repulsion, more in ((0.0, None, 0), (1.0, None, 1), (1.0, zero, 3)):
        at = noised(repulsion=repulsion)
        METHODS[method](at, DistillConfig(view_contrast=contrast))
        assert len(at.predict.asked) == calls + more * guided


@pytest.mark.parametrize("method", METHODS)
def test_descent_moves_towards_the_mean(method):
    """One pixel in 16 views, from a distance of ten standard deviations."""
    config, rng = DistillConfig(guidance_scale=2.0), torch.Generator().manual_seed(0)
    m, steps = WORLD["positive"][0], 120
    predict = Predict({**UNNAMED, "source": WORLD["positive"]})  # dds: of an image at the mean
    z = torch.full((16, 1, 1, 1), m - 3.0).double()
    for step in range(steps):
        noise = torch.randn(z.shape, generator=rng).double()
        timesteps = torch.randint(150, 450, (16,), generator=rng)
        source = torch.full_like(z, m)
        at = Noised(z, noise, timesteps, predict, ALPHA_BAR, step / steps, source=source)
        z = z - 0.2 * METHODS[method](at, config)
    assert abs(z.mean().item() - m) < 1.0


def mixture(*means, weights=None, sigma=0.1, prior_sigma=1.0):
    values = torch.stack([torch.full((1, 2, 2), float(m)) for m in means])
    fractions = torch.tensor(weights) if weights else torch.full((len(means),), 1 / len(means))
    return GaussianMixture(values, fractions, sigma, ALPHA_BAR.float(), prior_sigma)


def predictions(score, noisy, timesteps) -> tuple[Tensor, Tensor]:
    """Those for no text and for a text."""
    texts = score.embed(["", "a rabbit"])[:, None].expand(-1, len(noisy), -1, -1)
    negative, positive = score.predict_noise(noisy, timesteps, texts)
    return negative, positive


def gradient(score, latents, timestep, noise, scale=1.0):
    timesteps = torch.full((len(latents),), timestep)
    at = Noised(latents, noise, timesteps, partial(_predict, score), ALPHA_BAR.float())
    return METHODS["sds"](at, DistillConfig(guidance_scale=scale))


def _predict(score, noisy: Tensor, timesteps: Tensor, *roles: Role) -> tuple[Tensor, ...]:
    assert roles == ("negative", "positive")
    return predictions(score, noisy, timesteps)


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
    a = ALPHA_BAR[timestep]
    noisy = torch.randn(5, 1, 2, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    variance = a * 0.09 + 1 - a
    away = noisy[:, None] - a.sqrt() * score.means.double()
    log_density = (
        score.weights.double().log() - away.square().sum((2, 3, 4)) / (2 * variance)
    ).logsumexp(1)
    (slope,) = torch.autograd.grad(log_density.sum(), noisy)
    prior, predicted = predictions(score, noisy.detach().float(), torch.full((5,), timestep))
    torch.testing.assert_close(predicted, (-(1 - a).sqrt() * slope).float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prior, ((1 - a).sqrt() * noisy).float())


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
    score, z = mixture(0.0, sigma=0.2), torch.full((1, 1, 2, 2), 0.1)
    sizes = []
    for _ in range(50):
        z = z + 0.05 * gradient(score, z, 300, torch.zeros_like(z))
        sizes.append(z.norm().item())
    assert all(b > a for a, b in zip(sizes, sizes[1:], strict=False))


def test_loss_gradient_is_exact_and_linear(rng):
    latents, grad = (torch.randn(3, 4, 2, 2, generator=rng, requires_grad=r) for r in (True, False))
    (once,) = torch.autograd.grad(distillation_loss(latents, grad), latents)
    (twice,) = torch.autograd.grad(2 * distillation_loss(latents, grad), latents)
    torch.testing.assert_close(once, grad / 3)
    torch.testing.assert_close(twice, 2 * once)


def test_loss_tells_ascent_from_descent(rng):
    latents, grad = torch.randn(2, 4, 2, 2, generator=rng), torch.randn(2, 4, 2, 2, generator=rng)
    up, down = distillation_loss(latents, -grad).item(), distillation_loss(latents, grad).item()
    assert down == pytest.approx(-up)
    assert down != pytest.approx(0.5 * grad.square().sum().item() / 2)


def test_loss_keeps_small_gradients_in_half_precision():
    """z - g in float16 would swallow a gradient of 1e-5 beside a latent of 1."""
    latents = torch.ones(1, 1, 1, 1, dtype=torch.float16, requires_grad=True)
    loss = distillation_loss(latents, torch.full((1, 1, 1, 1), 1e-5))
    (got,) = torch.autograd.grad(loss, latents)
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
        {"method": "SDS"},
        {"schedule": "cosine"},
        {"schedule": "hifa"},
        {"schedule": "dreamtime", "max_timestep": (0.5, 0.98)},
        {"inversion_steps": 0},
        {"refresh": (0.0, 1e-4)},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"distill\."):
        DistillConfig(**bad)
