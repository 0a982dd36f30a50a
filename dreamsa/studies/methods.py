"""The rows of the benchmark of distillation: settings with a name and a source."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from dreamsa.settings import parse_setting

BASELINE = "sds"
"""The method that the others are compared with."""


@dataclass(frozen=True)
class DistillationMethod:
    """A row: the toybox preset with some settings changed."""

    name: str
    title: str
    """One sentence."""
    source: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings, as `with_overrides` takes them."""
    steps: float = 1.0
    """Steps as a fraction of the benchmark's, for as many UNet calls as the others."""


METHODS: dict[str, DistillationMethod] = {
    method.name: method
    for method in (
        DistillationMethod(
            "sds",
            "score distillation sampling: the preset",
            "DreamFusion, arXiv:2209.14988",
        ),
        DistillationMethod(
            "sds-strong",
            "sds with ten times the guidance",
            "DreamFusion, arXiv:2209.14988",
            {"distill.guidance_scale": 100.0},
        ),
        DistillationMethod(
            "rescaled",
            "the guided image takes half of the conditional one's contrast",
            "MVDream, arXiv:2308.16512",
            {
                "distill.method": "rescaled",
                "distill.guidance_scale": 15.0,
                "distill.max_timestep": [0.98, 0.3],
            },
        ),
        DistillationMethod(
            "csd",
            "the classifier's part alone",
            "arXiv:2310.19415",
            {"distill.method": "csd"},
        ),
        DistillationMethod(
            "nfsd",
            "without the part that predicts the noise",
            "arXiv:2310.17590",
            {"distill.method": "nfsd", "distill.guidance_scale": 7.5},
        ),
        DistillationMethod(
            "ism",
            "two neighbouring timesteps on an inverted path",
            "LucidDreamer, arXiv:2311.11284",
            {"distill.method": "ism", "distill.guidance_scale": 7.5, "distill.inversion_steps": 3},
            steps=1 / 3,
        ),
        DistillationMethod(
            "sdi",
            "the noise that inversion finds",
            "arXiv:2405.15891",
            {
                "distill.method": "sdi",
                "distill.guidance_scale": 7.5,
                "distill.inversion_steps": 3,
                "distill.schedule": "linear",
                "distill.max_timestep": [0.98, 0.25],
            },
            steps=1 / 4,
        ),
        DistillationMethod(
            "consistent",
            "noise that moves with the camera",
            "FSD, arXiv:2405.10988; CFD, arXiv:2501.05445",
            {
                "distill.method": "consistent",
                "distill.schedule": "linear",
                "distill.max_timestep": [0.98, 0.21],
            },
        ),
        DistillationMethod(
            "bridge",
            "away from the text of a bad render in the last fifth",
            "arXiv:2406.09417",
            {"distill.method": "bridge"},
        ),
        DistillationMethod(
            "hifa",
            "timesteps fall with the square root of the progress",
            "arXiv:2305.18766",
            {"distill.schedule": "hifa"},
        ),
        DistillationMethod(
            "dreamtime",
            "timesteps fall slowly where objects form",
            "arXiv:2306.12422",
            {"distill.schedule": "dreamtime"},
        ),
        DistillationMethod(
            "pairs",
            "two opposite views a step",
            "github.com/marianlupascu/MV-SDI",
            {"camera.batch": 2, "camera.opposite_pairs": True},
            steps=1 / 2,
        ),
        DistillationMethod(
            "perp-neg",
            "sds that repels the texts of front and side",
            "Perp-Neg, arXiv:2304.04968",
            {"views.perpendicular": 2.0},
            steps=1 / 2,
        ),
        DistillationMethod(
            "view-contrast",
            "away from the opposite view's prediction in the first half",
            "dreamsa",
            {"distill.view_contrast": 25.0},
            steps=4 / 5,
        ),
        DistillationMethod(
            "soft",
            "sds without hardening",
            "dreamsa",
            {"field.sharpness": 1.0},
        ),
        DistillationMethod(
            "depth-variance",
            "sds with the z-variance",
            "HiFA, arXiv:2305.18766",
            {"loss.depth_variance": 100.0},
        ),
        DistillationMethod(
            "smooth",
            "sds with total variation",
            "dreamsa",
            {"loss.smoothness": 10.0},
        ),
        DistillationMethod(
            "four-views",
            "sds that names four views and no angles",
            "DreamFusion, arXiv:2209.14988",
            {"views.wording": "{prompt}, {view} view"},
        ),
    )
}


@lru_cache
def method_of(name: str) -> DistillationMethod:
    """A row by its name, or a variant of one: "sds@distill.guidance_scale=50".

    Raises:
        ValueError: An unknown method, or a setting without a value.
    """
    first, *settings = (part.strip() for part in name.split("@"))
    if first not in METHODS:
        raise ValueError(
            f"There is no method {first!r}. Methods: {', '.join(METHODS)}; or all. "
            "A variant is METHOD@setting=value, e.g. sds@distill.guidance_scale=50."
        )
    base = METHODS[first]
    if not settings:
        return base
    values = dict(map(parse_setting, settings))
    title = ", ".join([base.title, *(f"{key} = {value}" for key, value in values.items())])
    full = "@".join([first, *settings])
    return replace(base, name=full, title=title, overrides={**base.overrides, **values})


def chosen_methods(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of methods, the baseline first if it is among them.

    Args:
        names: "all", "sds,perp-neg", or a list.

    Raises:
        ValueError: An unknown method, or none.
    """
    given = names.split(",") if isinstance(names, str) else list(names)
    if [name.strip().lower() for name in given] == ["all"]:
        return tuple(METHODS)
    chosen = dict.fromkeys(method_of(name.strip()).name for name in given or [""])
    return tuple(sorted(chosen, key=lambda name: name != BASELINE))
