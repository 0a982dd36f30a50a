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


def _row(
    name: str, title: str, source: str, steps: float = 1.0, **settings: Any
) -> DistillationMethod:
    """A row; in the names of settings, __ stands for a dot."""
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    return DistillationMethod(name, title, source, overrides, steps)


METHODS: dict[str, DistillationMethod] = {
    method.name: method
    for method in (
        _row("sds", "score distillation sampling: the preset", "DreamFusion, arXiv:2209.14988"),
        _row(
            "sds-strong",
            "sds with ten times the guidance",
            "DreamFusion, arXiv:2209.14988",
            distill__guidance_scale=100.0,
        ),
        _row(
            "rescaled",
            "the guided image takes half of the conditional one's contrast",
            "MVDream, arXiv:2308.16512",
            distill__method="rescaled",
            distill__guidance_scale=15.0,
            distill__max_timestep=[0.98, 0.3],
        ),
        _row("csd", "the classifier's part alone", "arXiv:2310.19415", distill__method="csd"),
        _row(
            "nfsd",
            "without the part that predicts the noise",
            "arXiv:2310.17590",
            distill__method="nfsd",
            distill__guidance_scale=7.5,
        ),
        _row(
            "ism",
            "two neighbouring timesteps on an inverted path",
            "LucidDreamer, arXiv:2311.11284",
            1 / 3,
            distill__method="ism",
            distill__guidance_scale=7.5,
            distill__inversion_steps=3,
        ),
        _row(
            "sdi",
            "the noise that inversion finds",
            "arXiv:2405.15891",
            1 / 4,
            distill__method="sdi",
            distill__guidance_scale=7.5,
            distill__inversion_steps=3,
            distill__schedule="linear",
            distill__max_timestep=[0.98, 0.25],
        ),
        _row(
            "consistent",
            "noise that moves with the camera",
            "FSD, arXiv:2405.10988; CFD, arXiv:2501.05445",
            distill__method="consistent",
            distill__schedule="linear",
            distill__max_timestep=[0.98, 0.21],
        ),
        _row(
            "bridge",
            "away from the text of a bad render in the last fifth",
            "arXiv:2406.09417",
            distill__method="bridge",
        ),
        _row("hifa", "timesteps fall", "arXiv:2305.18766", distill__schedule="hifa"),
        _row("dreamtime", "timesteps fall", "arXiv:2306.12422", distill__schedule="dreamtime"),
        _row(
            "pairs",
            "two opposite views a step",
            "github.com/marianlupascu/MV-SDI",
            0.5,
            camera__batch=2,
            camera__opposite_pairs=True,
        ),
        _row(
            "perp-neg",
            "sds that repels the texts of front and side",
            "Perp-Neg, arXiv:2304.04968",
            0.5,
            views__perpendicular=2.0,
        ),
        _row(
            "view-contrast",
            "away from the opposite view's prediction in the first half",
            "dreamsa",
            0.8,
            distill__view_contrast=25.0,
        ),
        _row("soft", "sds without hardening", "dreamsa", field__sharpness=1.0),
        _row(
            "depth-variance",
            "sds with the z-variance",
            "HiFA, arXiv:2305.18766",
            loss__depth_variance=100.0,
        ),
        _row("smooth", "sds with total variation", "dreamsa", loss__smoothness=10.0),
        _row(
            "four-views",
            "sds that names four views and no angles",
            "DreamFusion, arXiv:2209.14988",
            views__wording="{prompt}, {view} view",
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
