import pytest
import torch

from dreamsa.distill.noise import TURN, consistent_noise, refreshed

SIZE, CHANNELS = 16, 4


def noise(azimuth, elevation=0.0, age=0.0, opacity=1.0, seed=0, channels=CHANNELS):
    """Of one view whose cells all have the same opacity."""
    angles = torch.tensor([float(azimuth)]), torch.tensor([float(elevation)])
    covered = torch.full((1, SIZE, SIZE), opacity)
    return consistent_noise(seed, age, *angles, covered, channels)[0]


def correlation(one, other):
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


@pytest.mark.parametrize("age", [0.0, 0.5, 7.25])
@pytest.mark.parametrize("opacity", [0.0, 1.0])
def test_noise_is_unit_and_white(age, opacity):
    """At 12,288 values the standard errors are below 0.01."""
    drawn = torch.stack([noise(30, age=age, opacity=opacity, seed=s) for s in range(12)])
    assert drawn.mean().item() == pytest.approx(0, abs=0.04)
    assert drawn.std().item() == pytest.approx(1, abs=0.03)
    assert correlation(drawn[..., 1:], drawn[..., :-1]) == pytest.approx(0, abs=0.04)
    assert correlation(drawn[:, 1:], drawn[:, :-1]) == pytest.approx(0, abs=0.04)


def test_the_noise_of_a_camera_depends_on_age_seed_and_angles_alone():
    given = {"azimuth": 70, "elevation": 20, "age": 3.2}
    assert torch.equal(noise(**given), noise(**given))
    for change in ({"azimuth": 100}, {"elevation": 50}, {"age": 3.9}, {"seed": 1}):
        assert not torch.allclose(noise(**given), noise(**{**given, **change}))


def test_views_are_independent_of_their_batch():
    angles = torch.tensor([10.0, 200.0]), torch.tensor([0.0, 40.0])
    both = consistent_noise(0, 1.5, *angles, torch.ones(2, SIZE, SIZE), CHANNELS)
    assert torch.equal(both, torch.stack([noise(10, 0, 1.5), noise(200, 40, 1.5)]))


@pytest.mark.parametrize("cells", [1, 5])
@pytest.mark.parametrize("azimuth", [0.0, 315.0])
def test_nearby_cameras_share_noise_that_moves_with_the_surface(azimuth, cells):
    """Counter-clockwise of a camera, what it sees moves to the left; above it, down."""
    turn, rise = cells * 360 / (TURN * SIZE), cells * 180 / (TURN // 2 * SIZE)
    here = noise(azimuth, 10.0)
    beside, above = noise((azimuth + turn) % 360, 10.0), noise(azimuth, 10.0 + rise)
    assert torch.equal(beside[:, :, :-cells], here[:, :, cells:])
    assert torch.equal(above[:, cells:], here[:, :-cells])


@pytest.mark.parametrize(("azimuth", "elevation"), [(180, 0), (90, 0), (0, 90), (0, -90)])
def test_cameras_that_see_no_common_surface_have_independent_noise(azimuth, elevation):
    one, other = noise(0, channels=64), noise(azimuth, elevation, channels=64)
    assert correlation(one, other) == pytest.approx(0, abs=0.04)


def test_cells_that_are_not_covered_do_not_move():
    opacity = torch.zeros(2, SIZE, SIZE)
    opacity[:, 4:9, 4:9], opacity[:, 0] = 0.5, 0.49
    angles = torch.tensor([0.0, 130.0]), torch.tensor([0.0, 30.0])
    one, other = consistent_noise(0, 2.5, *angles, opacity, CHANNELS)
    covered = opacity[0] >= 0.5
    assert torch.equal(one[:, ~covered], other[:, ~covered])
    assert not torch.isclose(one[:, covered], other[:, covered]).any()
    assert torch.equal(other[:, covered], noise(130, 30, 2.5)[:, covered])


@pytest.mark.parametrize("opacity", [0.0, 1.0])
def test_correlation_falls_with_age_to_none_at_one(opacity):
    """As the cosine of a quarter turn, from a whole age on; continuous there."""
    first = noise(0, age=3.0, opacity=opacity, channels=64)
    ages = (0.0, 1 / 3, 2 / 3, 1.0, 2.0)
    found = [correlation(first, noise(0, 0, 3 + a, opacity, channels=64)) for a in ages]
    assert found == pytest.approx([1.0, 3**0.5 / 2, 0.5, 0.0, 0.0], abs=0.04)
    before, after = noise(0, age=4 - 1e-6, opacity=opacity), noise(0, age=4.0, opacity=opacity)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rates", [(1e-2, 1e-4), (1e-4, 1e-2), (3e-3, 3e-3)])
def test_refreshed_is_the_sum_of_the_rates_of_the_steps_before(rates):
    first, last = rates
    total, summed = 1000, 0.0
    for step in range(total):
        assert refreshed(rates, step, total) == pytest.approx(summed, rel=0.01)
        summed += first * (last / first) ** ((step + 0.5) / total)
