"""Evaluation of a text-to-image model: does the judge name what its images were conditioned on?"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false
# (decorators of diffusers and transformers hide their own types)

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreamsa.config import ModelConfig
from dreamsa.evaluation.angles import told_apart
from dreamsa.evaluation.judge import Judge, Verdict
from dreamsa.guidance.prompts import ANGLE_STEP_DEG, Angles, nearest_angles
from dreamsa.guidance.stable_diffusion import StableDiffusion, locate_model
from dreamsa.media import contact_sheet, to_uint8, write_png
from dreamsa.randomness import seed_for
from dreamsa.toybox.captions import HELD_OUT, LOOK_ALIKE, caption
from dreamsa.toybox.dataset import AMBIGUOUS, azimuth_label, view_label
from dreamsa.toybox.shapes import COLOURS, TOYS

Request = tuple[str, str, Angles]
"""Object, colour and camera angles of a prompt."""
Bools = Bool[np.ndarray, "n"]

NEAR_DEG = 30
"""Distance up to which an azimuth is right; chance is 5 of 24."""
RENDERS = 800
"""True images of which azimuths are told apart."""
AZIMUTH = f"azimuth within {NEAR_DEG} degrees"


def _angles(count: int, rng: np.random.Generator) -> list[Angles]:
    """Azimuths spread evenly from a random one; every fourth camera is overhead."""
    first = rng.uniform(0, 360)
    elevations = ((75, 90) if i % 4 == 3 else (-10, 75) for i in range(count))
    return [
        nearest_angles(first + 360 * i / count, rng.uniform(*ends))
        for i, ends in enumerate(elevations)
    ]


def _requests(per_object: int, seed: int) -> tuple[list[Request], list[Request]]:
    """Prompts over the trained pairs, `per_object` for each object, and for each held-out pair."""
    rng = np.random.default_rng(seed_for(seed, 0, "evaluate"))
    trained: list[Request] = []
    for name in TOYS:
        colours = [colour for colour in COLOURS if (colour, name) not in HELD_OUT]
        for angles in _angles(per_object, rng):
            trained.append((name, colours[int(rng.integers(len(colours)))], angles))
    held_out = [
        (name, colour, angles)
        for colour, name in sorted(HELD_OUT)
        for angles in _angles(per_object, rng)
    ]
    return trained, held_out


def evaluate_model(
    model: str, per_object: int, guidance: float, seed: int, sheet: Path | None = None
) -> dict[str, Any]:
    """Accuracy of a model's images as the judge names them, for trained and for held-out pairs, and
    how well the model tells azimuths apart.

    Every prompt names a view and angles.

    Args:
        model: A folder.
        per_object: Images per object over trained pairs, and per held-out pair.
        guidance: Scale of classifier-free guidance.
        sheet: PNG to write all images to.

    Raises:
        ValueError: Not a local model folder, or `per_object` is out of range.
    """
    from diffusers import StableDiffusionPipeline

    from dreamsa.toybox.diffusion import sample

    if not 1 <= per_object <= 1000:
        raise ValueError(f"per_object must lie in [1, 1000], got {per_object}.")
    kind, where = locate_model(ModelConfig(model, offline=True))
    if kind != "folder":
        raise ValueError(
            f"Only models trained on the toybox can be evaluated: give a folder, not {model!r}."
        )
    pipeline = StableDiffusionPipeline.from_pretrained(
        where, local_files_only=True, use_safetensors=True, dtype=torch.float32, safety_checker=None
    )
    judge, steps = Judge.load(), 25
    facts: dict[str, Any] = {"guidance": guidance, "steps": steps, "seed": seed}
    batches, titles = [], ("trained pairs", "held-out pairs")
    for title, requests in zip(titles, _requests(per_object, seed), strict=True):
        texts = [caption(name, colour, angles=angles) for name, colour, angles in requests]
        images = sample(pipeline, texts, seed, steps, guidance)
        batches.append(images)
        facts[title] = {"images": len(requests), **score(judge, images, requests)}
    if sheet is not None:
        write_png(contact_sheet(to_uint8(torch.cat(batches)), columns=24), sheet)
    here = StableDiffusion.load(ModelConfig(model, offline=True))
    facts["azimuths told apart"] = told_apart(here, RENDERS, seed)
    return facts


def score(
    judge: Judge, images: Float[Tensor, "n 3 h w"], requests: list[Request]
) -> dict[str, Any]:
    """Per attribute: how many images the judge names correctly, and the objects of the others.

    Views and azimuths count for objects with a front only, where they are not ambiguous; azimuths
    only if the judge was trained to name them.
    """
    names = np.array([name for name, _, _ in requests])
    facts = {}
    judged = _judged(judge(images), requests)
    if not judge.names_azimuths:
        del judged[AZIMUTH]
    for kind, (right, counted) in judged.items():
        successes, trials = int((right & counted).sum()), int(counted.sum())
        wrong = Counter(names[counted & ~right].tolist())
        facts[kind] = {
            "fraction": round(successes / trials, 4) if trials else None,
            "right": successes,
            "of": trials,
            "most often wrong": ", ".join(f"{n} {k}" for n, k in wrong.most_common(5)) or "none",
        }
    return facts


def _judged(verdict: Verdict, requests: list[Request]) -> dict[str, tuple[Bools, Bools]]:
    """Per attribute: whether each image is right, and whether it counts."""
    names, colours, angles = zip(*requests, strict=True)
    best_object, best_colour, best_view, best_azimuth = (p.argmax(1).numpy() for p in verdict)
    views = np.array([view_label(*pair) for pair in angles])
    azimuths = np.array([azimuth_label(*pair) for pair in angles])
    off = np.abs(best_azimuth - azimuths) * ANGLE_STEP_DEG
    fronted, every = np.array([n not in LOOK_ALIKE for n in names]), np.ones(len(names), bool)
    return {
        "object": (best_object == np.array([list(TOYS).index(name) for name in names]), every),
        "colour": (best_colour == np.array([list(COLOURS).index(name) for name in colours]), every),
        "view": (best_view == views, fronted & (views != AMBIGUOUS)),
        AZIMUTH: (
            np.minimum(off, 360 - off) <= NEAR_DEG,
            fronted & (azimuths != AMBIGUOUS),
        ),
    }
