"""How well a text-to-image model tells an azimuth from the opposite and from the mirrored one.

Its error on noised true images, given the right text and given another: without sampling and
without a judge. A model that cannot tell them makes objects that face backwards.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.guidance.noise import Latents, add_noise
from dreamsa.guidance.prompts import nearest_angles
from dreamsa.guidance.score_model import ScoreModel
from dreamsa.randomness import generator_for, seed_for
from dreamsa.toybox.captions import LOOK_ALIKE, caption
from dreamsa.toybox.dataset import COLOUR_NAMES, NAMES, Labels, grey_backgrounds, render_images

LEVELS = (0.3, 0.5, 0.7, 0.9)
"""Noise levels: fractions of the timesteps."""
MAX_ELEVATION_DEG = 60
SIDEWAYS = 0.5
"""Least |sin azimuth|, 30 degrees from front and back, for the mirror image to differ clearly."""
BATCH = 32


def told_apart(score: ScoreModel, images: int, seed: int) -> dict[str, dict[str, Any]]:
    """Fraction of noised images whose noise the model predicts better with the right azimuth in the
    text than with another, by noise level; 0.5 is chance.

    "opposite" is the azimuth on the other side; "mirrored", the one with the other sign, is
    measured on cameras at least 30 degrees from the front and the back. New renders of objects with
    a front, up to 60 degrees of elevation.

    Args:
        images: Number of renders, of which about four in ten count.
    """
    dataset = render_images(images, seed_for(seed, 0, "told apart"))
    kept = np.array(
        [
            NAMES[name] not in LOOK_ALIKE and elevation <= MAX_ELEVATION_DEG
            for name, _, _, elevation in dataset.labels.tolist()
        ]
    )
    index, labels = kept.nonzero()[0], dataset.labels[kept]
    rng = np.random.default_rng(seed_for(seed, 0, "backgrounds"))
    latents = score.encode(dataset.over(index, grey_backgrounds(len(index), rng)))
    sideways = torch.from_numpy(np.abs(np.sin(np.radians(labels[:, 2]))) >= SIDEWAYS)
    facts: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        own, opposite, mirrored = (
            _errors(score, latents, _captions(labels, change), level, seed)
            for change in (lambda a: a, lambda a: a + 180, lambda a: -a)
        )
        facts[f"noise level {level}"] = {
            "opposite": _fraction_better(own, opposite),
            "mirrored": _fraction_better(own[sideways], mirrored[sideways]),
        }
    return {"images": {"opposite": len(index), "mirrored": int(sideways.sum())}, **facts}


def _fraction_better(own: Float[Tensor, "b"], other: Float[Tensor, "b"]) -> float:
    """Fraction of smaller errors; equal ones count half."""
    return round(float((own < other).float().mean() + (own == other).float().mean() / 2), 3)


def _captions(labels: Labels, change: Callable[[float], float]) -> list[str]:
    return [
        caption(
            NAMES[name], COLOUR_NAMES[colour], angles=nearest_angles(change(azimuth), elevation)
        )
        for name, colour, azimuth, elevation in labels.tolist()
    ]


@torch.no_grad()
def _errors(
    score: ScoreModel, latents: Latents, texts: list[str], level: float, seed: int
) -> Float[Tensor, "b"]:
    """Mean squared error of the predicted noise, which is the same for all texts."""
    noise = torch.randn(latents.shape, generator=generator_for(seed, 0, f"level {level}"))
    timestep, errors = round(level * len(score.alpha_bar)), []
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        timesteps = torch.full((len(texts[part]),), timestep)
        noisy = add_noise(latents[part], noise[part], score.alpha_bar[timesteps])
        (predicted,) = score.predict_noise(noisy, timesteps, score.embed(texts[part])[None])
        errors.append((predicted - noise[part]).square().mean((1, 2, 3)))
    return torch.cat(errors)
