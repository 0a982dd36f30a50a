"""Telling azimuths apart, with models whose errors are known."""

import re

import pytest
import torch

from dreamsa.evaluation.angles import LEVELS, told_apart


class Model:
    """A score model whose error is a function of the text's azimuth and of the image's, which is
    that of the first text that it is asked with."""

    alpha_bar = torch.linspace(0.999, 0.01, 1000)

    def __init__(self, error):
        self.error = error
        self.asked: dict[int, list[torch.Tensor]] = {}

    def encode(self, images):
        self.clean = images
        return images

    def embed(self, texts):
        return torch.tensor([float(re.findall(r"azimuth (\d+)", t)[0]) for t in texts])[
            :, None, None
        ]

    def predict_noise(self, noisy, timesteps, texts):
        assert (timesteps == timesteps[0]).all() and len(timesteps) == len(noisy)
        level = int(timesteps[0])
        asked = self.asked.setdefault(level, [])
        asked.append(texts.flatten())
        first = sum(map(len, asked[:-1])) % len(self.clean)
        part = slice(first, first + len(noisy))
        a = self.alpha_bar[level]
        noise = (noisy - a.sqrt() * self.clean[part]) / (1 - a).sqrt()
        error = self.error(asked[-1], torch.cat(asked)[: len(self.clean)][part])
        return (noise + error[:, None, None, None],)


def circular(one, other):
    return ((one - other + 180) % 360 - 180).abs()


@pytest.mark.parametrize(
    ("error", "opposite", "mirrored"),
    [
        (circular, 1.0, 1.0),
        (lambda one, other: torch.zeros(len(one)), 0.5, 0.5),
        # left and right are the same to it
        (lambda one, other: circular(circular(one, 0 * one), circular(other, 0 * one)), 1.0, 0.5),
        # prefers the wrong one
        (lambda one, other: 180 - circular(one, other), 0.0, 0.0),
    ],
)
def test_fractions_of_models_with_known_errors(error, opposite, mirrored):
    facts = told_apart(Model(error), images=60, seed=0)
    assert 5 < facts["images"]["mirrored"] < facts["images"]["opposite"] < 60
    assert len(facts) == 1 + len(LEVELS)
    for level in LEVELS:
        measured = facts[f"noise level {level}"]
        # cameras at 90 and 270 degrees have equal errors if left and right are the same
        assert measured["opposite"] == pytest.approx(opposite, abs=0.15)
        assert measured["mirrored"] == pytest.approx(mirrored, abs=1e-6)
