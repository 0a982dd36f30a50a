"""What a judge says of a run, seen from fixed cameras: is it what the prompt asks for, and what is left of the object it was edited from?"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa import api, checkpoint
from dreamsa.evaluate.geometry import AZIMUTHS, ELEVATION_DEG
from dreamsa.evaluate.judge import Judge
from dreamsa.evaluate.metrics import directional_similarity, foreground_fraction, front_everywhere, psnr, retrieved, silhouette_overlap
from dreamsa.export.video import contact_sheet, write_png
from dreamsa.guidance.prompts import VIEWS, same_prompt
from dreamsa.render.cameras import CameraConfig, orbit
from dreamsa.runs import Run, RunError, find_run, runs_folder
from dreamsa.scene import Scene
from dreamsa.toybox.captions import LOOK_ALIKE, article, caption
from dreamsa.toybox.dataset import UNTOLD, view_label
from dreamsa.toybox.renderer import to_uint8
from dreamsa.toybox.shapes import COLOUR_SYNONYMS, COLOURS, TOYS

ENOUGH = 0.75
"""Share of the views in which the judge must name the object and the colour right for a success: 6 of 8."""


class Named(NamedTuple):
    """What a prompt names of the toybox."""

    object: str | None
    colour: str | None


class Views(NamedTuple):
    """Pictures from fixed cameras at ELEVATION_DEG."""

    rgb: Float[Tensor, "b 3 h w"]  # in [0, 1]
    opacity: Float[Tensor, "b h w"]
    azimuths_deg: tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """How well pictures fit a prompt, one number per picture; None where the prompt does not name such a thing."""

    retrieved: Float[Tensor, "b"]
    probability: Float[Tensor, "b"]
    object_probability: Float[Tensor, "b"] | None
    object_right: Float[Tensor, "b"] | None
    colour_probability: Float[Tensor, "b"] | None
    colour_right: Float[Tensor, "b"] | None


@dataclass(frozen=True)
class Scores:
    """Means over the views. None: the question does not arise, as for a colour that is not named, or the parent of a generation."""

    r_precision: float
    """Share of views for which the prompt is the most similar of all texts, its distractors among them."""
    probability: float
    """Of the prompt among its distractors."""
    foreground: float
    """Share of pixels that the object covers."""
    object_probability: float | None = None
    object_right: float | None = None
    """Share of views in which the judge names the object right; likewise below."""
    colour_probability: float | None = None
    colour_right: float | None = None
    view_probability: float | None = None
    """Of the view that the camera has, over cameras clear of the views' borders and objects that have a front."""
    view_right: float | None = None
    janus: float | None = None
    """Share of side and back views that look more like the front; 0 is best."""
    probability_before: float | None = None
    """Of the parent's prompt among its own distractors, on the edited object: low where the edit has left it."""
    directional_similarity: float | None = None
    """Cosine between the change of the pictures and the change of the prompt."""
    psnr: float | None = None
    """Preservation: of the pictures against the parent's from the same cameras, dB."""
    silhouette: float | None = None
    """Preservation of the shape: overlap of the silhouettes with the parent's, in [0, 1]."""
    likeness: float | None = None
    """Preservation as the judge sees it: cosine between its features before and after."""

    def passes(self, share: float = ENOUGH) -> bool:
        """Whether the judge names object and colour right in that share of the views; for prompts that name neither, retrieves the prompt."""
        asked = [right for right in (self.object_right, self.colour_right) if right is not None]
        return min(asked or [self.r_precision]) >= share


def named(prompt: str) -> Named:
    """The toybox's object and colour that a prompt names; black and gray are read as ebony and grey."""
    words = f" {' '.join(re.findall(r'[a-z]+', prompt.lower()))} "
    toys = [name for name in TOYS if f" {name} " in words]
    colours = [name for name in (*COLOURS, *COLOUR_SYNONYMS) if f" {name} " in words]
    colour = colours[0] if len(colours) == 1 else None
    return Named(toys[0] if len(toys) == 1 else None, COLOUR_SYNONYMS.get(colour or "", colour))


def distractors(prompt: str) -> list[str]:
    """What else the prompt could have been: for "a purple rabbit" all other colours and objects, for prompts without a colour all other objects."""
    name, colour = named(prompt)
    if name and colour:
        return [caption(n, c) for n in TOYS for c in COLOURS if (n, c) != (name, colour)]
    return [f"{article(n)} {n}" for n in TOYS if n != name]


def fixed_views(scene: Scene, camera: CameraConfig, azimuths_deg: tuple[float, ...] = AZIMUTHS, resolution: int = 64) -> Views:
    """The scene from around, from where people look at it, over its own background."""
    view = scene.look(orbit(list(azimuths_deg), ELEVATION_DEG, **api.viewing_camera(camera)), resolution)
    return Views(view.rgb.cpu().clamp(0, 1), view.opacity.cpu(), azimuths_deg)


def fit_of(judge: Judge, rgb: Float[Tensor, "b 3 h w"], prompt: str) -> Fit:
    """How well pictures fit a prompt."""
    chances, verdict = judge.probabilities(rgb, [prompt, *distractors(prompt)]), judge(rgb)
    name, colour = named(prompt)

    def of(chances: Tensor, names: list[str], asked: str | None) -> tuple[Tensor | None, Tensor | None]:
        if asked is None:
            return None, None
        index = names.index(asked)
        return chances[:, index], (chances.argmax(1) == index).float()

    objects, colours = of(verdict.objects, list(TOYS), name), of(verdict.colours, list(COLOURS), colour)
    return Fit(retrieved(chances).float(), chances[:, 0], *objects, *colours)


def _views_told(judge: Judge, views: Views, name: str | None) -> dict[str, float]:
    """Probability and share right of the cameras' own views, and the Janus proxy; nothing where views cannot be told."""
    own = torch.tensor([view_label(azimuth, ELEVATION_DEG) for azimuth in views.azimuths_deg])
    told = own != UNTOLD
    elsewhere = told & (own != VIEWS.index("front"))
    if name in LOOK_ALIKE or not elsewhere.any():
        return {}
    chances = judge(views.rgb).views
    return {
        "view_probability": _mean(chances[told].gather(1, own[told][:, None])),
        "view_right": _mean((chances[told].argmax(1) == own[told]).float()),
        "janus": _mean(front_everywhere(chances[elsewhere], own[elsewhere]).float()),
    }


def scores_of(judge: Judge, views: Views, prompt: str, before: tuple[Views, str] | None = None) -> Scores:
    """All scores of an object; with `before`, the parent's views from the same cameras and its prompt, those of an edit too."""
    fit = {name: _mean(value) for name, value in vars(fit_of(judge, views.rgb, prompt)).items() if value is not None}
    found: dict[str, Any] = {
        "r_precision": fit.pop("retrieved"),
        **fit,
        **_views_told(judge, views, named(prompt).object),
        "foreground": _mean(foreground_fraction(views.opacity)),
    }
    if before is not None:
        parent, parent_prompt = before
        texts = judge.text_features([parent_prompt, prompt])
        was, now = judge.image_features(parent.rgb), judge.image_features(views.rgb)
        found |= {
            "probability_before": _mean(fit_of(judge, views.rgb, parent_prompt).probability),
            "directional_similarity": _mean(directional_similarity(was, now, texts[0], texts[1])),
            "psnr": _mean(psnr(views.rgb, parent.rgb)),
            "silhouette": _mean(silhouette_overlap(views.opacity, parent.opacity)),
            "likeness": _mean((was * now).sum(1)),
        }
    return Scores(**found)


def succeeded(scores: Scores, repair: bool) -> bool:
    """Whether an edit has come to what it was for. A repair also has to show its right sides, where those can be told."""
    return scores.passes() and (not repair or scores.view_right is None or scores.view_right >= ENOUGH)


def _mean(values: Tensor) -> float:
    return round(float(values.mean()), 4)


def spoken(judge: Judge, rgb: Float[Tensor, "b 3 h w"]) -> list[str]:
    """What the judge calls each picture: "purple rabbit"."""
    verdict = judge(rgb)
    names, colours = list(TOYS), list(COLOURS)
    return [f"{colours[int(c)]} {names[int(o)]}" for c, o in zip(verdict.colours.argmax(1), verdict.objects.argmax(1), strict=True)]


def finished_scene(run: Run) -> Scene:
    """A finished run's scene.

    Raises:
        RunError: It is not finished.
    """
    if run.status != "finished":
        raise RunError(f"Run {run.id} is {run.status}, not finished. Finish it first: dreamsa resume {run.id}")
    return api.load_scene(run)


def strip(*rows: Float[Tensor, "b 3 h w"]) -> np.ndarray:
    """Rows of pictures, one under the other: uint8 [h, w, 3]."""
    return contact_sheet(to_uint8(torch.cat(rows)), len(rows[0]))


def evaluate_run(run: Run | str | Path, *, judge: str | None = None, runs: Path | str | None = None) -> dict[str, Any]:
    """Let a judge look at a finished run from eight sides.

    Args:
        judge: `toybox`, a CLIP model's folder or its Hub id.

    Returns:
        prompt, judge, parent, scores (see `Scores`), and what the judge calls each view. The same is written to RUN/evaluation.json, and
        the views to RUN/evaluation.png, an edit's under its parent's.

    Raises:
        ValueError: The run is missing or not finished, or there is no such judge; one sentence.
    """
    folder = runs_folder(runs)
    found = find_run(run, folder)
    scene, loaded = finished_scene(found), Judge.load(judge)
    views = fixed_views(scene, found.config.camera, resolution=loaded.size)
    parent = api.parent_of(found, folder)
    before = None
    if parent is not None:
        before = fixed_views(finished_scene(parent), found.config.camera, resolution=loaded.size), parent.prompt
    scores = scores_of(loaded, views, found.prompt, before)
    facts: dict[str, Any] = {
        "run": found.id,
        "prompt": found.prompt,
        "parent": {"run": parent.id, "prompt": parent.prompt} if parent else None,
        "judge": loaded.name,
        "success": succeeded(scores, parent is not None and same_prompt(found.prompt, parent.prompt)),
        "scores": asdict(scores),
        "views": dict(zip((f"{azimuth:g} deg" for azimuth in views.azimuths_deg), spoken(loaded, views.rgb), strict=True)),
    }
    checkpoint.write_json(found.path / "evaluation.json", facts)
    write_png(strip(*([before[0].rgb] if before else []), views.rgb), found.path / "evaluation.png")
    return facts
