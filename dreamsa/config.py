"""A run's whole configuration: the parts' own dataclasses, presets, and JSON in and out."""

import dataclasses
import json
import typing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from dreamsa.fields.field import FieldConfig
from dreamsa.fields.hashgrid import HashGridConfig
from dreamsa.guidance.prompts import ViewConfig, same_prompt
from dreamsa.guidance.stable_diffusion import KNOWN_MODELS, ModelConfig
from dreamsa.render.cameras import CameraConfig
from dreamsa.render.volume import RenderConfig
from dreamsa.sds import SDSConfig

Escape = Literal["auto", "anneal", "plain", "fresh", "noise", "interpolate", "regularizers"]
ESCAPES: tuple[Escape, ...] = get_args(Escape)
DEFAULT_ESCAPE: Escape = "interpolate"
"""What succeeds most often, whatever is asked for (docs/edits.md)."""
ASCENDING: tuple[Escape, ...] = ("anneal", "regularizers")
"""The escapes that ascend for a while."""
GROUPS = ("grid", "mlp", "background")
"""The parameter groups of a scene."""
PresetName = Literal["toybox", "paper", "sd"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the regularisers. They always descend."""

    opacity: float = 0.0
    """Of mean sqrt(opacity^2 + 0.01): less is better."""
    entropy: float = 0.0
    """Of the binary entropy of opacity, growing linearly over the run: rays should hit or miss."""
    orientation: float = 0.0
    """Of the Ref-NeRF orientation loss: visible normals should face the camera."""

    def __post_init__(self) -> None:
        for name in ("opacity", "entropy", "orientation"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"loss.{name} must lie in [0, 1e6], got {getattr(self, name)}.")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, betas (0.9, 0.99), eps 1e-15."""

    lr: float = 1e-2
    """Of the hash grid."""
    mlp_lr: float = 1e-2
    background_lr: float = 1e-3
    warmup: int = 50
    """Steps over which the rate grows linearly after the moments were reset."""
    decay: float = 1.0
    """What is left of the rate at the end of the run, reached by a cosine; 1 keeps it constant."""

    def __post_init__(self) -> None:
        for name in ("lr", "mlp_lr", "background_lr"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"optimizer.{name} must lie in (0, 1], got {getattr(self, name)}.")
        if not 0 <= self.warmup <= 100_000:
            raise ValueError(f"optimizer.warmup must lie in [0, 100000] steps, got {self.warmup}.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"optimizer.decay must lie in [0, 1], got {self.decay}.")


@dataclass(frozen=True)
class EditConfig:
    """How an edit leaves the local minimum that its parent's scene sits in."""

    parent: str
    """Id of the run that the scene was taken from."""
    escape: Escape = "anneal"
    """auto: resume, and if the score model finds after a while that the scene is not on its way, go back and interpolate; a repair, whose prompt is
    the parent's own, is interpolated at once (see `dreamsa.auto`).
    anneal: ascend on the new prompt, then descend. plain: descend only. fresh: start from scratch. noise: one random
    displacement, then descend. interpolate: move towards a random scene, then descend (Perturb-and-Revise). regularizers: as
    anneal, but what ascends is the opacity regulariser alone: the control that knows nothing of the new prompt."""
    ascent_steps: int = 0
    """How many of the run's steps ascend."""
    scale: float = 0.01
    """S: factor on the learning rate while ascending (thesis, eq. 9)."""
    eta: float = 0.6
    """Share of the way towards a random scene, for interpolate and auto."""
    moments: Literal["reset", "keep"] = "reset"
    """Whether the optimizer forgets what it gathered on the parent's prompt. Only plain can keep it: every other way moves the scene elsewhere."""
    displacement: dict[str, float] | None = None
    """For noise and interpolate: the Euclidean norm to move each parameter group (grid, mlp, background) by, in place of what
    `scale` and `eta` say. Groups that are not named stay."""
    parent_prompt: str = ""
    """What the parent was made for; filled in by `edited`."""

    def __post_init__(self) -> None:
        if self.escape not in ESCAPES:
            raise ValueError(f"edit.escape must be one of {', '.join(ESCAPES)}, got {self.escape!r}.")
        if self.ascent_steps < 0:
            raise ValueError(f"edit.ascent_steps must be at least 0, got {self.ascent_steps}.")
        if not 0 <= self.scale <= 100:
            raise ValueError(f"edit.scale must lie in [0, 100], got {self.scale}.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"edit.eta must lie in [0, 1], got {self.eta}.")
        for name, norm in (self.displacement or {}).items():
            if self.escape not in ("noise", "interpolate"):
                raise ValueError(f"edit.displacement is for noise and interpolate; {self.escape} moves as far as it moves. Leave it out.")
            if name not in GROUPS or not 0 <= norm < float("inf"):
                raise ValueError(f"edit.displacement wants norms of at least 0 for {', '.join(GROUPS)}; got {name!r}: {norm}.")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes. The same config on the same machine gives the same scene."""

    prompt: str
    negative_prompt: str = ""
    steps: int = 5000
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    render: RenderConfig = dataclasses.field(default_factory=RenderConfig)
    sds: SDSConfig = dataclasses.field(default_factory=SDSConfig)
    views: ViewConfig = dataclasses.field(default_factory=ViewConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    edit: EditConfig | None = None
    save_every: int = 500
    """Steps between checkpoints."""
    turntable: int = 60
    """Frames of the turntable that a finished run gets; 0 makes none."""

    @property
    def repairs(self) -> bool:
        """Whether it is an edit to the parent's own prompt: something is wrong with the parent that its words do not say."""
        return self.edit is not None and same_prompt(self.edit.parent_prompt, self.prompt)

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1_000_000:
            raise ValueError(f"steps must lie in [1, 1000000], got {self.steps}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in [0, 2^63), got {self.seed}.")
        if not 1 <= self.save_every <= 1_000_000:
            raise ValueError(f"save_every must lie in [1, 1000000] steps, got {self.save_every}.")
        if self.turntable != 0 and not 8 <= self.turntable <= 1000:
            raise ValueError(f"turntable must be 0 or lie in [8, 1000] frames, got {self.turntable}.")
        if self.edit is not None and self.edit.ascent_steps >= self.steps:
            raise ValueError(
                f"edit.ascent_steps must be below steps = {self.steps}, got {self.edit.ascent_steps}. An edit that only climbs never lands."
            )
        if self.edit is not None and self.edit.escape == "auto" and self.steps < 12 and not self.repairs:
            raise ValueError(
                f"The escape auto watches for a sixth of the steps before it decides: it needs at least 12 steps, got {self.steps}."
            )


def preset(name: PresetName, prompt: str) -> RunConfig:
    """A whole configuration by name.

    toybox: the embedded model, minutes on a CPU. paper: the thesis' and DreamFusion's numbers, for Stable Diffusion on a
    GPU. sd: Stable Diffusion with the settings that threestudio and stable-dreamfusion have found to work better.
    """
    if name == "toybox":
        return RunConfig(
            prompt,
            steps=1200,
            field=FieldConfig(radius=0.6, blob_radius=0.4),
            camera=CameraConfig((-10, 90), (0, 360), (1.4, 1.7), (0.95, 1.2), 0.02, 0.02, batch=1),
            sds=SDSConfig(guidance_scale=25.0, max_timestep=(0.98, 0.6)),
            loss=LossConfig(entropy=30.0),
            optimizer=OptimizerConfig(decay=0.1),
        )
    big = FieldConfig(grid=HashGridConfig(levels=16, log2_size=19, finest=4096), hidden=64)
    weights = ModelConfig(KNOWN_MODELS[0])
    if name == "paper":
        return RunConfig(prompt, steps=20_000, model=weights, field=big, sds=SDSConfig(100.0))
    if name == "sd":
        return RunConfig(
            prompt,
            steps=10_000,
            model=weights,
            field=big,
            camera=CameraConfig((-10, 60), (0, 360), (1.5, 2.0), (0.7, 1.35), batch=1),
            render=RenderConfig(samples=512),
            sds=SDSConfig(100.0, max_timestep=(0.98, 0.5), anneal_until=0.6),
            views=ViewConfig(interpolate=True, overhead_deg=50),
            loss=LossConfig(opacity=1.0, orientation=10.0),
        )
    raise ValueError(f"There is no preset {name!r}. There are: {', '.join(PRESETS)}.")


EDIT_STEPS: dict[PresetName, tuple[int, int]] = {"toybox": (750, 150), "paper": (5000, 1000), "sd": (4000, 800)}
"""Steps of an edit, and how many of them ascend. Thesis: 5,000 of which 1,000."""


def edited(config: RunConfig, prompt: str, edit: EditConfig, steps: int) -> RunConfig:
    """The child's configuration: the parent's, with a new prompt, fresh schedules and a way out of the minimum."""
    return replace(config, prompt=prompt, steps=steps, edit=replace(edit, parent_prompt=config.prompt))


def to_json(config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


@lru_cache
def _validator() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(RunConfig)


def from_json(value: Any) -> RunConfig:
    """A configuration from JSON.

    Raises:
        ValueError: Unknown keys, wrong types, values out of range; names the key.
    """
    from pydantic import ValidationError

    _refuse_unknown(RunConfig, value, "")
    try:
        return _validator().validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"config: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def read_config(path: Path) -> RunConfig:
    """A configuration file.

    Raises:
        ValueError: Not there, not JSON, or not a configuration.
    """
    try:
        return from_json(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Cannot read the configuration {path}: {error}") from error


def parse_setting(text: str) -> tuple[str, Any]:
    """ "sds.guidance_scale=30" as a key and a value, which is JSON where it can be, else text.

    Raises:
        ValueError: No equals sign.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"A setting is name=value, e.g. sds.guidance_scale=30; got {text!r}.")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value.strip()


def _refuse_unknown(cls: type, value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"config{where} should be an object, found {type(value).__name__}.")
    hints = typing.get_type_hints(cls)
    for key, inner in value.items():
        if key not in hints:
            raise ValueError(f"config{where} has no key {key!r}. It has: {', '.join(hints)}.")
        kinds = [hints[key], *get_args(hints[key])]
        nested = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if nested is not None and inner is not None:
            _refuse_unknown(nested, inner, f"{where}.{key}")  # pyright: ignore[reportArgumentType]
