import math

import pytest
import torch

from dreamsa.config import RenderConfig
from dreamsa.rendering import kernels_numba, kernels_torch
from dreamsa.rendering.cameras import orbit
from dreamsa.rendering.kernels import kernels_for, resolve_kernels
from dreamsa.rendering.kernels_torch import accumulate, sample_weights
from dreamsa.rendering.occupancy import OccupancyGrid
from dreamsa.rendering.volume import cube_bounds, render, render_rays


def ball(radius=0.4, density=200.0, colour=(0.2, 0.6, 0.9)):
    """A solid ball as a query function."""

    def query(points, directions=None):
        inside = points.norm(dim=-1) < radius
        return inside.float() * density, torch.tensor(colour).expand(len(points), 3)

    return query


def full_grid(radius=0.6, resolution=16):
    return OccupancyGrid(resolution, radius, threshold=0.1)


def rays(n, rng):
    origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=rng), dim=-1) * 1.5
    directions = torch.nn.functional.normalize(
        0.4 * torch.randn(n, 3, generator=rng) - origins, dim=-1
    )
    return origins, directions


def packed(rng, rays=50, longest=20):
    counts = torch.randint(0, longest, (rays,), generator=rng)
    counts[3] = 0
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return starts, int(starts[-1])


def loop_weights(depth, starts):
    """Max 1995, one sample at a time: transmittance times opacity."""
    weights = torch.zeros_like(depth)
    for ray in range(len(starts) - 1):
        transmittance = 1.0
        for i in range(starts[ray], starts[ray + 1]):
            alpha = 1 - math.exp(-depth[i])
            weights[i] = transmittance * alpha
            transmittance *= 1 - alpha
    return weights


def test_weights_equal_a_double_loop(rng):
    starts, n = packed(rng)
    depth = torch.rand(n, generator=rng, dtype=torch.float64) * 2
    expected = loop_weights(depth, starts)
    torch.testing.assert_close(sample_weights(depth, starts), expected)
    eye = torch.eye(n, dtype=torch.float64)
    found = kernels_numba.composite(depth, eye, starts)
    torch.testing.assert_close(found, accumulate(expected, eye, starts))


def test_weights_of_a_ray_sum_to_its_opacity(rng):
    starts, n = packed(rng)
    depth = torch.rand(n, 1, generator=rng, dtype=torch.float64)
    weights = sample_weights(depth[:, 0], starts)
    total = accumulate(torch.ones(n, dtype=torch.float64), depth, starts)[:, 0]
    torch.testing.assert_close(
        accumulate(weights, torch.ones(n, 1, dtype=torch.float64), starts)[:, 0], 1 - (-total).exp()
    )


def test_packed_weights_keep_their_precision_over_many_rays(rng):
    """A float32 cumulative sum over 1e5 dense samples loses 1e-3."""
    starts = torch.arange(0, 100_001, 50)
    depth = torch.full((100_000,), 3.0)
    together = sample_weights(depth, starts)
    torch.testing.assert_close(
        together[-50:], sample_weights(depth[:50], starts[:2]), atol=1e-7, rtol=0
    )


def test_gradients_of_both_backends_agree_and_are_exact(rng):
    starts, n = packed(rng, rays=6, longest=5)
    depth = torch.rand(n, generator=rng, dtype=torch.float64, requires_grad=True)
    values = torch.rand(n, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    for composite in (kernels_torch.composite, kernels_numba.composite):
        assert torch.autograd.gradcheck(
            lambda d, v, composite=composite: composite(d, v, starts), (depth, values)
        )


@pytest.mark.parametrize("fill", [0.0, 0.3, 1.0])
def test_numba_march_equals_torch_march(rng, fill):
    occupied = torch.rand(16, 16, 16, generator=rng) < fill
    origins, directions = rays(300, rng)
    near, far = cube_bounds(origins, directions, 0.6)
    first = torch.rand(300, generator=rng)
    expected = kernels_torch.march(occupied, 0.6, origins, directions, near, far, first, 0.02)
    found = kernels_numba.march(occupied, 0.6, origins, directions, near, far, first, 0.02)
    assert len(found[1]) == pytest.approx(
        len(expected[1]), abs=len(expected[1]) // 500
    )  # a sample on a cell's face may round either way
    if fill in (0.0, 1.0):
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])


def test_kernels_fit_the_device_and_fall_back_to_torch(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert kernels_for(cpu).march is kernels_numba.march
    assert kernels_for(cpu, "torch").march is kernels_torch.march
    monkeypatch.setattr("dreamsa.rendering.kernels.triton_problem", lambda probe, device: "no cc")
    assert kernels_for(gpu) == kernels_for(cpu, "torch")
    assert resolve_kernels(gpu) == ("torch", "no Triton: no cc")
    assert resolve_kernels(cpu) == ("numba", "the device is a CPU")


def test_cube_bounds_hit_and_miss():
    origins = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0.0, 0, 0]])
    directions = torch.tensor([[-1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    near, far = cube_bounds(origins, directions, 0.5)
    torch.testing.assert_close(near[[0, 2]], torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(far[[0, 2]], torch.tensor([2.5, 0.5]))
    assert far[1] <= near[1]


def test_a_solid_ball_renders_as_a_disc_of_the_right_size_depth_and_colour():
    cameras, config = orbit([0.0, 70.0], 20.0, distance=1.5, focal=1.1), RenderConfig(samples=400)
    image = render(ball(), full_grid(), cameras, 64, config, torch.ones(3))
    tangent = math.tan(math.asin(0.4 / 1.5)) * 1.1  # of the silhouette, in image widths
    assert image.opacity.mean().item() == pytest.approx(math.pi * tangent**2, rel=0.03)
    assert image.depth[:, 31:33, 31:33].mean().item() == pytest.approx(1.1, abs=0.02)
    torch.testing.assert_close(
        image.rgb[0, :, 32, 32], torch.tensor([0.2, 0.6, 0.9]), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(image.rgb[0, :, 0, 0], torch.ones(3))
    assert image.depth[0, 0, 0] == 0


def test_both_backends_render_the_same_image(rng):
    cameras, jitter = orbit([10.0, 200.0]), torch.rand(2, 32, 32, generator=rng)
    background = torch.rand(2, 3, generator=rng)
    views = [
        render(
            ball(density=20.0),
            full_grid(),
            cameras,
            32,
            RenderConfig(kernels=name),
            background,
            jitter,
        )
        for name in ("auto", "torch")
    ]
    torch.testing.assert_close(views[0].rgb, views[1].rgb, atol=1e-4, rtol=0)
    torch.testing.assert_close(views[0].depth, views[1].depth, atol=1e-3, rtol=0)


def test_an_empty_scene_is_its_background_and_keeps_the_graph():
    """Without any sample the image stays differentiable in the parameters."""
    grid = full_grid()
    grid.occupied[:] = False
    scale = torch.ones(1, requires_grad=True)
    image = render(
        lambda p, d: (scale * p[:, 0], p),
        grid,
        orbit([0.0]),
        16,
        RenderConfig(),
        torch.tensor([0.1, 0.2, 0.3]),
    )
    assert image.samples == 0
    torch.testing.assert_close(image.rgb[0, :, 5, 5], torch.tensor([0.1, 0.2, 0.3]))
    (image.rgb.sum() + image.opacity.sum()).backward()
    assert scale.grad is None or scale.grad.item() == 0


def test_orientation_loss_penalises_surfaces_that_face_away():
    """The visible half of a ball faces the camera, that of a hollow does not."""

    def orientation(sign):
        def query(points, directions):
            inside = sign * (0.4 - points.norm(dim=-1))
            return torch.sigmoid(40 * inside) * 30, points * 0 + 0.5

        config, cameras = RenderConfig(), orbit([0.0])
        image = render(query, full_grid(), cameras, 32, config, torch.ones(3), orientation=True)
        return image.orientation.item()

    values = [orientation(sign) for sign in (1, -1)]
    assert values[0] < 0.05 * values[1]
    assert values[1] > 0


CONFIG = RenderConfig(samples=400, min_transmittance=0.0)
STEP = CONFIG.step(0.6)


def sheets(alphas, cells):
    """Sheets of these opacities, one sample thick, `cells` steps apart, that face +x."""

    def query(points, directions=None):
        density = torch.zeros_like(points[:, 0])
        for i, alpha in enumerate(torch.as_tensor(alphas)):
            near = (points[:, 0] - 0.3 + i * cells * STEP).abs() < STEP / 2
            density = density - near * torch.log1p(-alpha.to(density)) / STEP
        return density, torch.full_like(points, 0.5)

    return query


def depth_variance(query, kernels="auto", distance=1.5, dtype=torch.float32):
    """Of one ray against x."""
    origin, direction = torch.tensor([[distance, 0.01, 0.02]]), torch.tensor([[-1.0, 0, 0]])
    config = RenderConfig(samples=400, min_transmittance=0.0, kernels=kernels)
    ray = origin.to(dtype), direction.to(dtype)
    return render_rays(
        query, full_grid(), *ray, config, torch.ones(3, dtype=dtype), depth_variance=True
    ).depth_variance[0]


@pytest.mark.parametrize("distance", [1.5, 40.0])
def test_depth_variance_of_an_opaque_wall_is_zero(distance):
    """Far away, too, where squares of the depth itself would have lost it."""
    assert depth_variance(sheets([1 - 1e-6], 0), distance=distance).item() < 1e-6


@pytest.mark.parametrize("opacity", [0.55, 0.8, 0.99])
@pytest.mark.parametrize("cells", [10, 80])
def test_depth_variance_of_two_equal_sheets_is_their_half_distance_squared(opacity, cells):
    """Whatever their opacity together."""
    half = opacity / 2
    found = depth_variance(sheets([half, half / (1 - half)], cells))
    assert found.item() == pytest.approx((cells * STEP / 2) ** 2, rel=1e-3)


def test_the_mean_depth_variance_is_over_opaque_rays_and_only_on_request():
    """Sheets that are opaque above the horizon and nearly clear below."""

    def query(points, directions=None):
        opaque, clear = (sheets([a / 2, a / (2 - a)], 40)(points)[0] for a in (0.8, 0.4))
        return torch.where(points[:, 2] > 0, opaque, clear), points * 0

    views = query, full_grid(), orbit([0.0], 0.0, focal=6.0), 32, CONFIG, torch.ones(3)
    image, plain = render(*views, depth_variance=True), render(*views)
    assert (image.opacity > 0.5).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert image.depth_variance.item() == pytest.approx((40 * STEP / 2) ** 2, rel=0.02)
    assert plain.depth_variance.item() == 0
    assert torch.equal(plain.rgb, image.rgb)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_the_gradient_of_depth_variance_is_exact(kernels):
    """Of V = w1 w2 d^2 / (w1 + w2)^2, the weights being a1 and (1 - a1) a2."""
    alphas = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    found = depth_variance(sheets(alphas, 40), kernels, dtype=torch.float64)
    one, other = alphas[0], (1 - alphas[0]) * alphas[1]
    expected = one * other * (40 * STEP) ** 2 / (one + other).square()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    gradients = [torch.autograd.grad(value, alphas)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=0)


def test_both_backends_have_the_same_depth_variance_and_gradient(rng):
    jitter, found = torch.rand(1, 16, 16, generator=rng), []
    for kernels in ("auto", "torch"):
        strength = torch.tensor(12.0, requires_grad=True)
        query = lambda p, d, s=strength: (s * ball(density=1.0)(p)[0], p.abs())  # noqa: E731
        config = RenderConfig(kernels=kernels)
        image = render(
            query, full_grid(), orbit([30.0]), 16, config, torch.ones(3), jitter,
            depth_variance=True,
        )  # fmt: skip
        found.append((image.depth_variance, *torch.autograd.grad(image.depth_variance, strength)))
    assert found[0][0] > 1e-3
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_lambertian_light_makes_the_far_side_darker_and_textureless_hides_colour():
    lit, white = (
        render(
            ball(),
            full_grid(),
            orbit([90.0]),
            32,
            RenderConfig(shading=name),
            torch.ones(3),
            light=torch.tensor([[1.0, 0, 0]]),
        )
        for name in ("lambertian", "textureless")
    )
    row = lit.rgb[0, 2, 16, 8:24]  # seen from +y, +x lies to the left
    assert row[:4].max() > row[-4:].max() + 0.1
    assert (white.rgb[0, 0] - white.rgb[0, 2]).abs().max() < 1e-5


def test_occupancy_skips_empty_space_and_keeps_a_margin(rng):
    grid = full_grid(resolution=24)
    grid.refresh(lambda p: ball(0.3)(p)[0], rng)
    fraction = grid.occupied.float().mean().item()
    assert 0.06 < fraction < 0.4
    before = render(
        ball(0.3), full_grid(resolution=24), orbit([30.0]), 32, RenderConfig(), torch.ones(3)
    )
    after = render(ball(0.3), grid, orbit([30.0]), 32, RenderConfig(), torch.ones(3))
    torch.testing.assert_close(before.rgb, after.rgb, atol=1e-5, rtol=0)
    assert after.samples < before.samples / 2


def test_occupancy_decays_on_update_and_is_rebuilt_on_refresh(rng):
    grid = full_grid()
    grid.refresh(lambda p: ball(0.3)(p)[0], rng)
    nothing = lambda p: p[:, 0] * 0  # noqa: E731
    grid.update(nothing, rng)
    assert grid.occupied.any()
    grid.refresh(nothing, rng)
    assert not grid.occupied.any()


def test_culling_changes_neither_image_nor_gradient(rng):
    strength = torch.tensor(60.0, requires_grad=True)

    def query(points, directions=None):
        return torch.sigmoid(30 * (0.4 - points.norm(dim=-1))) * strength, points.abs()

    results = []
    for limit in (0.0, 1e-4):
        image = render(
            query,
            full_grid(),
            orbit([20.0]),
            32,
            RenderConfig(min_transmittance=limit),
            torch.ones(3),
        )
        results.append(
            (
                image.rgb.detach(),
                torch.autograd.grad(image.rgb.square().sum(), strength)[0],
                image.samples,
            )
        )
    torch.testing.assert_close(results[0][0], results[1][0], atol=2e-4, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-3, rtol=0.02)
    assert results[1][2] < 0.8 * results[0][2]


@pytest.mark.parametrize("threshold", [1e-3, 0.5])
def test_both_backends_cull_the_same_samples(rng, threshold):
    starts, n = packed(rng)
    depth = torch.rand(n, generator=rng, dtype=torch.float64)
    assert torch.equal(
        kernels_numba.visible(depth, starts, threshold),
        kernels_torch.visible(depth, starts, threshold),
    )
    transmittance_left = 1 - torch.stack(
        [
            loop_weights(depth, starts)[starts[r] : starts[r + 1]].sum()
            for r in range(len(starts) - 1)
        ]
    )
    last = starts[1:][starts.diff() > 0] - 1
    before_last = transmittance_left[starts.diff() > 0] / (-depth[last]).exp()
    assert torch.equal(
        kernels_torch.visible(depth, starts, threshold)[last], before_last > threshold
    )
