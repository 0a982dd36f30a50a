"""Scores of a run by a judge: agreement with its prompt, likeness to its parent."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.choices import VIEWS
from dreamsa.config import same_prompt
from dreamsa.evaluation import metrics
from dreamsa.evaluation.judge import Judge
from dreamsa.evaluation.views import ELEVATION_DEG, Views, fixed_views, strip
from dreamsa.files import write_json
from dreamsa.media import Images, write_png
from dreamsa.outputs import load_scene, write_changes
from dreamsa.runs import Run, find_run, parent_of, runs_folder
from dreamsa.scene import Scene
from dreamsa.statistics import psnr, silhouette_iou
from dreamsa.toybox.captions import LOOK_ALIKE, article, caption
from dreamsa.toybox.dataset import AMBIGUOUS, view_label
from dreamsa.toybox.shapes import COLOUR_SYNONYMS, COLOURS, TOYS

ENOUGH = 0.75
"""Fraction of the views whose object and colour the judge must name correctly: 6 of 8."""


class Named(NamedTuple):
    object: str | None
    colour: str | None


@dataclass(frozen=True)
class Fit:
    """Agreement of images with a prompt, per image; None if it names no object or colour."""

    retrieved: Float[Tensor, "b"]
    probability: Float[Tensor, "b"]
    object_probability: Float[Tensor, "b"] | None
    object_right: Float[Tensor, "b"] | None
    colour_probability: Float[Tensor, "b"] | None
    colour_right: Float[Tensor, "b"] | None


@dataclass(frozen=True)
class Scores:
    """Means over the views; None if undefined, such as for a colour that is not named."""

    r_precision: float
    """Fraction of views for which the prompt is more similar than every distractor."""
    probability: float
    """Of the prompt among its distractors."""
    foreground: float
    """Fraction of pixels that the object covers."""
    object_probability: float | None = None
    object_right: float | None = None
    """Fraction of views in which the judge names it correctly; likewise below."""
    colour_probability: float | None = None
    colour_right: float | None = None
    view_probability: float | None = None
    """Over cameras clear of the borders between views; only for objects with a front."""
    view_right: float | None = None
    janus: float | None = None
    """Fraction of side and back views that resemble the front more; 0 is best."""
    probability_before: float | None = None
    """Of the parent's prompt among its distractors, on the edited object; low if it is gone."""
    directional_similarity: float | None = None
    """Cosine between the change of the images and the change of the prompt."""
    psnr: float | None = None
    """Preservation: against the parent's images from the same cameras, dB."""
    silhouette: float | None = None
    """Preservation of the shape: intersection over union with the parent's silhouette."""
    likeness: float | None = None
    """Preservation of appearance: cosine between the judge's features before and after."""

    def passes(self, fraction: float = ENOUGH) -> bool:
        """Whether the judge names object and colour, or else retrieves the prompt, that often."""
        named = [right for right in (self.object_right, self.colour_right) if right is not None]
        return min(named or [self.r_precision]) >= fraction


def named(prompt: str) -> Named:
    """Object and colour that a prompt names; black and gray mean ebony and grey."""
    words = f" {' '.join(re.findall(r'[a-z]+', prompt.lower()))} "
    toys = [name for name in TOYS if f" {name} " in words]
    colours = [name for name in (*COLOURS, *COLOUR_SYNONYMS) if f" {name} " in words]
    colour = colours[0] if len(colours) == 1 else None
    return Named(toys[0] if len(toys) == 1 else None, COLOUR_SYNONYMS.get(colour or "", colour))


def distractors(prompt: str) -> list[str]:
    """Alternatives to a prompt: all other objects, in all colours if the prompt names one."""
    name, colour = named(prompt)
    if name and colour:
        return [caption(n, c) for n in TOYS for c in COLOURS if (n, c) != (name, colour)]
    return [f"{article(n)} {n}" for n in TOYS if n != name]


def fit_of(judge: Judge, rgb: Images, prompt: str) -> Fit:
    """Judge images against a prompt and its distractors."""
    probabilities = judge.probabilities(rgb, [prompt, *distractors(prompt)])
    verdict, (name, colour) = judge(rgb), named(prompt)

    def of(values: Tensor, names: list[str], wanted: str | None) -> list[Tensor | None]:
        if wanted is None:
            return [None, None]
        index = names.index(wanted)
        return [values[:, index], (values.argmax(1) == index).float()]

    return Fit(
        metrics.retrieved(probabilities).float(),
        probabilities[:, 0],
        *of(verdict.objects, list(TOYS), name),
        *of(verdict.colours, list(COLOURS), colour),
    )


def _view_scores(judge: Judge, views: Views, name: str | None) -> dict[str, float]:
    own = torch.tensor([view_label(azimuth, ELEVATION_DEG) for azimuth in views.azimuths_deg])
    clear = own != AMBIGUOUS
    not_front = clear & (own != VIEWS.index("front"))
    if name in LOOK_ALIKE or not not_front.any():
        return {}
    probabilities = judge(views.rgb).views
    return {
        "view_probability": _mean(probabilities[clear].gather(1, own[clear][:, None])),
        "view_right": _mean((probabilities[clear].argmax(1) == own[clear]).float()),
        "janus": _mean(metrics.front_everywhere(probabilities[not_front], own[not_front]).float()),
    }


def scores_of(
    judge: Judge, views: Views, prompt: str, before: tuple[Views, str] | None = None
) -> Scores:
    """All scores; `before`, for an edit: its parent's views from the same cameras, and prompt."""
    fit = vars(fit_of(judge, views.rgb, prompt))
    means = {name: _mean(value) for name, value in fit.items() if value is not None}
    scores: dict[str, Any] = {
        "r_precision": means.pop("retrieved"),
        **means,
        **_view_scores(judge, views, named(prompt).object),
        "foreground": _mean(metrics.foreground_fraction(views.opacity)),
    }
    if before is not None:
        parent, parent_prompt = before
        texts = judge.text_features([parent_prompt, prompt])
        old, new = judge.image_features(parent.rgb), judge.image_features(views.rgb)
        scores |= {
            "probability_before": _mean(fit_of(judge, views.rgb, parent_prompt).probability),
            "directional_similarity": _mean(metrics.directional_similarity(old, new, *texts)),
            "psnr": _mean(psnr(views.rgb, parent.rgb)),
            "silhouette": _mean(silhouette_iou(views.opacity, parent.opacity)),
            "likeness": _mean((old * new).sum(1)),
        }
    return Scores(**scores)


def succeeded(scores: Scores, repair: bool) -> bool:
    """Whether an edit is a success; a repair must also show the correct sides."""
    sides = scores.view_right is None or scores.view_right >= ENOUGH
    return scores.passes() and (not repair or sides)


def _mean(values: Tensor) -> float:
    return round(float(values.mean()), 4)


def describe(judge: Judge, rgb: Images) -> list[str]:
    """The judge's name for each image: "purple rabbit"."""
    verdict, names, colours = judge(rgb), list(TOYS), list(COLOURS)
    best = zip(verdict.colours.argmax(1), verdict.objects.argmax(1), strict=True)
    return [f"{colours[int(colour)]} {names[int(name)]}" for colour, name in best]


def finished_scene(run: Run) -> Scene:
    """A run's scene; raises RunError if the run is not finished."""
    run.require_finished()
    return load_scene(run)


def evaluate(
    run: Run | str | Path, *, judge: str | None = None, runs: Path | str | None = None
) -> dict[str, Any]:
    """Score a finished run from eight sides; an edit is compared with its parent, too.

    Args:
        judge: `toybox`, a CLIP model's folder or its Hub id.

    Returns:
        run, prompt, parent, judge, success, scores (see `Scores`), preservation (see
        `dreamsa.preservation`; None for a generation) and the judge's name for each view: also
        written to RUN/evaluation.json; the views to RUN/evaluation.png.

    Raises:
        ValueError: The run is missing or unfinished, or there is no such judge.
    """
    folder = runs_folder(runs)
    found = find_run(run, folder)
    scene, loaded, camera = finished_scene(found), Judge.load(judge), found.config.camera
    views = fixed_views(scene, camera, resolution=loaded.size)
    parent = parent_of(found, folder)
    old = scene.beneath() if parent is None else load_scene(parent)
    before = None
    if old is not None and found.config.edit is not None:
        parent_views = fixed_views(old, camera, resolution=loaded.size)
        before = parent_views, parent.prompt if parent else found.config.edit.parent_prompt
    scores = scores_of(loaded, views, found.prompt, before)
    angles = (f"{azimuth:g} deg" for azimuth in views.azimuths_deg)
    repair = before is not None and same_prompt(found.prompt, before[1])
    facts: dict[str, Any] = {
        "run": found.id,
        "prompt": found.prompt,
        "parent": {"run": parent.id, "prompt": parent.prompt} if parent else None,
        "judge": loaded.name,
        "success": succeeded(scores, repair),
        "scores": asdict(scores),
        "preservation": None if old is None else write_changes(found, old, scene),
        "views": dict(zip(angles, describe(loaded, views.rgb), strict=True)),
    }
    write_json(found.path / "evaluation.json", facts)
    rows = [before[0].rgb, views.rgb] if before else [views.rgb]
    write_png(strip(*rows), found.path / "evaluation.png")
    return facts
