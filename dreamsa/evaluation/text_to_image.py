"""Evaluation of a text-to-image model: does the judge name what its images were conditioned on?"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false
# (decorators of diffusers and transformers hide their own types)

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.choices import VIEWS, View
from dreamsa.config import ModelConfig
from dreamsa.evaluation.judge import Judge
from dreamsa.guidance.stable_diffusion import locate_model
from dreamsa.media import contact_sheet, to_uint8, write_png
from dreamsa.randomness import seed_for
from dreamsa.toybox.captions import HELD_OUT, LOOK_ALIKE, caption
from dreamsa.toybox.shapes import COLOURS, TOYS

Request = tuple[str, str, View]
"""Object, colour and view of a prompt."""


def _requests(per_object: int, seed: int) -> tuple[list[Request], list[Request]]:
    """Prompts over the trained pairs, `per_object` each, and each held-out pair from every view."""
    rng = np.random.default_rng(seed_for(seed, 0, "evaluate"))
    trained: list[Request] = []
    for name in TOYS:
        colours = [colour for colour in COLOURS if (colour, name) not in HELD_OUT]
        for i in range(per_object):
            colour = colours[int(rng.integers(len(colours)))]
            trained.append((name, colour, VIEWS[i % len(VIEWS)]))
    return trained, [(name, colour, view) for colour, name in sorted(HELD_OUT) for view in VIEWS]


def evaluate_model(
    model: str, per_object: int, guidance: float, seed: int, sheet: Path | None = None
) -> dict[str, Any]:
    """Accuracy of a model's images as the judge names them, for trained and for held-out pairs.

    Args:
        model: A folder.
        per_object: Images per object over trained pairs.
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
        images = sample(pipeline, [caption(*r) for r in requests], seed, steps, guidance)
        batches.append(images)
        facts[title] = {"pictures": len(requests), **score(judge, images, requests)}
    if sheet is not None:
        write_png(contact_sheet(to_uint8(torch.cat(batches)), columns=24), sheet)
    return facts


def score(
    judge: Judge, images: Float[Tensor, "n 3 h w"], requests: list[Request]
) -> dict[str, Any]:
    """Accuracy per attribute, and the objects that are most often wrong."""
    verdict = judge(images)
    right: dict[str, np.ndarray] = {}
    for i, (kind, known) in enumerate({"object": TOYS, "colour": COLOURS, "view": VIEWS}.items()):
        wanted = [list(known).index(request[i]) for request in requests]
        right[kind] = verdict[i].argmax(1).numpy() == np.array(wanted)
    names = [request[0] for request in requests]
    wrong = Counter(name for name, ok in zip(names, right["object"], strict=True) if not ok)
    fronted = right["view"][[name not in LOOK_ALIKE for name in names]]
    right["view, of objects with a front"] = fronted if len(fronted) else np.zeros(1)
    confused = ", ".join(f"{name} {count}" for name, count in wrong.most_common(5))
    accuracy = {kind: round(float(ok.mean()), 4) for kind, ok in right.items()}
    return {**accuracy, "most often wrong": confused or "none"}
