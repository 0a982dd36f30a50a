from math import exp

import pytest
import torch

from dreamsa.config import DistillConfig
from dreamsa.distill.timesteps import (
    DREAMTIME,
    falling_timestep,
    sample_timesteps,
    timestep_range,
)
from dreamsa.randomness import generator_for

FALLING = ("linear", "hifa", "dreamtime")
TOTAL = 2000


def falling(schedule, ends=(0.98, 0.1), steps=range(TOTAL + 1), timesteps=1000, **changes):
    config = DistillConfig(schedule=schedule, max_timestep=ends, **changes)
    return [falling_timestep(config, step, TOTAL, timesteps) for step in steps]


def test_timesteps_cover_an_inclusive_range_one_per_view():
    config = DistillConfig(min_timestep=(0.02, 0.02), max_timestep=(0.98, 0.98))
    drawn = torch.cat(
        [sample_timesteps(config, 0, 10, 1000, generator_for(0, i, "t")) for i in range(50)]
    )
    assert (drawn.min().item(), drawn.max().item()) == (20, 980)
    assert drawn[:1000].unique().numel() > 300


def test_timestep_range_moves_and_stays():
    config = DistillConfig(max_timestep=(0.98, 0.5), anneal_until=0.5)
    assert [timestep_range(config, s, 100)[1] for s in (0, 25, 50, 99)] == [980, 740, 500, 500]
    config = DistillConfig(min_timestep=(0.0, 0.0), max_timestep=(1.0, 1.0))
    assert timestep_range(config, 0, 1) == (0, 999)


@pytest.mark.parametrize("schedule", FALLING)
@pytest.mark.parametrize(("ends", "bounds"), [((0.98, 0.1), (980, 100)), ((1.0, 0.03), (999, 30))])
def test_a_schedule_falls_monotonically_from_one_end_to_the_other(schedule, ends, bounds):
    found = falling(schedule, ends)
    assert (found[0], found[-1]) == bounds
    assert all(a >= b for a, b in zip(found, found[1:], strict=False))
    assert len(set(found)) > 0.7 * (bounds[0] - bounds[1])  # dreamtime hurries below 200


@pytest.mark.parametrize("schedule", FALLING)
def test_a_schedule_reaches_its_end_at_anneal_until_and_stays(schedule):
    whole, half = falling(schedule), falling(schedule, anneal_until=0.5)
    assert half[: TOTAL // 2 + 1] == whole[::2]
    assert set(half[TOTAL // 2 :]) == {100}


@pytest.mark.parametrize("schedule", FALLING)
@pytest.mark.parametrize("timesteps", [1, 50, 2000])
def test_timesteps_are_those_of_the_model(schedule, timesteps):
    found = falling(schedule, (1.0, 0.03), range(0, TOTAL + 1, 100), timesteps)
    assert all(0 <= t < timesteps for t in found)
    assert found[0] == timesteps - 1


def test_linear_and_hifa_are_their_formulas():
    quarter = [TOTAL // 4]
    assert falling("linear", (0.9, 0.1), quarter) == [700]
    assert falling("hifa", (0.9, 0.1), quarter) == [500]


def test_the_time_of_dreamtime_at_a_timestep_is_proportional_to_the_prior():
    start, end, below, above = DREAMTIME

    def prior(t):
        off = (t - end) / above if t > end else min(t - start, 0) / below
        return exp(-(off**2) / 2)

    found = torch.tensor(falling("dreamtime", (0.98, 0.05)))
    mass = sum(map(prior, range(50, 981)))
    for low, high in ((60, 300), (300, 400), (400, 600), (600, 800), (800, 900), (900, 970)):
        spent = ((found >= low) & (found < high)).float().mean().item()
        assert spent == pytest.approx(sum(map(prior, range(low, high))) / mass, abs=2e-3)


@pytest.mark.parametrize("schedule", FALLING)
def test_all_views_of_a_falling_schedule_share_a_timestep(schedule):
    config = DistillConfig(schedule=schedule, max_timestep=(0.9, 0.1))
    drawn = sample_timesteps(config, 30, 100, 4, generator_for(0, 30, "t"))
    assert drawn.tolist() == [falling_timestep(config, 30, 100)] * 4
    assert drawn.dtype == torch.int64
