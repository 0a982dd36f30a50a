import torch

from dreamsa.config import SDSConfig
from dreamsa.distill.timesteps import sample_timesteps, timestep_range
from dreamsa.randomness import generator_for


def test_timesteps_cover_an_inclusive_range_one_per_view():
    config = SDSConfig(min_timestep=(0.02, 0.02), max_timestep=(0.98, 0.98))
    drawn = torch.cat(
        [sample_timesteps(config, 0, 10, 1000, generator_for(0, i, "t")) for i in range(50)]
    )
    assert (drawn.min().item(), drawn.max().item()) == (20, 980)
    assert drawn[:1000].unique().numel() > 300


def test_timestep_range_moves_and_stays():
    config = SDSConfig(max_timestep=(0.98, 0.5), anneal_until=0.5)
    assert [timestep_range(config, s, 100)[1] for s in (0, 25, 50, 99)] == [980, 740, 500, 500]
    assert timestep_range(SDSConfig(min_timestep=(0.0, 0.0), max_timestep=(1.0, 1.0)), 0, 1) == (
        0,
        999,
    )
