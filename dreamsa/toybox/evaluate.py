"""The judge looks at the text-to-image model's own pictures: does it draw what it is told?"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false
# (decorators of diffusers and transformers hide their own types)

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.evaluate.judge import Judge
from dreamsa.export.video import contact_sheet, write_png
from dreamsa.guidance.prompts import VIEWS, View
from dreamsa.guidance.stable_diffusion import ModelConfig, locate_model
from dreamsa.randomness import seed_for
from dreamsa.toybox.captions import HELD_OUT, LOOK_ALIKE, caption
from dreamsa.toybox.renderer import to_uint8
from dreamsa.toybox.shapes import COLOURS, TOYS

Ask = tuple[str, str, View]


def _asks(per_object: int, seed: int) -> tuple[list[Ask], list[Ask]]:
    """(object, colour, view) triples: per object over trained pairs, and every held-out pair from every view."""
    rng = np.random.default_rng(seed_for(seed, 0, "evaluate"))
    trained: list[Ask] = []
    for name in TOYS:
        colours = [c for c in COLOURS if (c, name) not in HELD_OUT]
        for i in range(per_object):
            trained.append((name, colours[int(rng.integers(len(colours)))], VIEWS[i % len(VIEWS)]))
    held_out: list[Ask] = [(name, colour, view) for colour, name in sorted(HELD_OUT) for view in VIEWS]
    return trained, held_out


def evaluate_model(
    model: str, per_object: int, guidance: float, seed: int, sheet: Path | None = None, judge: Judge | None = None, steps: int = 25
) -> dict[str, Any]:
    """Shares of pictures whose object, colour and view the judge names as asked; for trained and for held-out pairs.

    Raises:
        ValueError: Not a local model folder, or numbers out of range.
    """
    from diffusers import StableDiffusionPipeline

    from dreamsa.toybox.diffusion import sample

    if not 1 <= per_object <= 1000:
        raise ValueError(f"per_object must lie in [1, 1000], got {per_object}.")
    kind, where = locate_model(ModelConfig(model, offline=True))
    if kind != "folder":
        raise ValueError(f"The toybox's questions are for models trained on it: give a folder, not {model!r}.")
    pipeline = StableDiffusionPipeline.from_pretrained(
        where, local_files_only=True, use_safetensors=True, dtype=torch.float32, safety_checker=None
    )
    judge = judge or Judge.load()
    table: dict[str, Any] = {"guidance": guidance, "steps": steps, "seed": seed}
    pictures = []
    for title, asks in zip(("trained pairs", "held-out pairs"), _asks(per_object, seed), strict=True):
        images = sample(pipeline, [caption(*ask) for ask in asks], seed, steps, guidance)
        pictures.append(images)
        table[title] = {"pictures": len(asks), **score(judge, images, asks)}
    if sheet is not None:
        write_png(contact_sheet(to_uint8(torch.cat(pictures)), columns=24), sheet)
    return table


def score(judge: Judge, images: Float[Tensor, "n 3 h w"], asks: list[Ask]) -> dict[str, Any]:
    """Shares of right answers, and the objects that went wrong most. Views count for objects that have a front."""
    verdict = judge(images)
    right = {
        kind: verdict[i].argmax(1).numpy() == np.array([list(names).index(ask[i]) for ask in asks])  # pyright: ignore[reportArgumentType]
        for i, (kind, names) in enumerate((("object", TOYS), ("colour", COLOURS), ("view", VIEWS)))
    }
    wrong: dict[str, int] = {}
    for ask, fine in zip(asks, right["object"], strict=True):
        if not fine:
            wrong[ask[0]] = wrong.get(ask[0], 0) + 1
    worst = sorted(wrong.items(), key=lambda item: -item[1])[:5]
    fronted = np.array([ask[0] not in LOOK_ALIKE for ask in asks])
    right["view, of objects with a front"] = right["view"][fronted] if fronted.any() else np.zeros(1)
    shares: dict[str, Any] = {kind: round(float(values.mean()), 4) for kind, values in right.items()}
    return {**shares, "most often wrong": ", ".join(f"{name} {count}" for name, count in worst) or "none"}
