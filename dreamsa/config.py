"""Every setting of a run, validated at construction; JSON in and out. Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dreamsa.choices import (
    ASCENT_SCALE,
    AUTO_REGION,
    DEFAULT_ESCAPE,
    ESCAPES,
    BackendName,
    Keep,
    MethodName,
    Moments,
    Schedule,
)
from dreamsa.settings import from_tree, settings, to_tree

TOYBOX = "toybox"
"""Name of the embedded models."""
TOYBOX_WORDING = "{prompt}, {view} view, azimuth {azimuth}, elevation {elevation}"
"""The wording that the embedded model was trained on."""

Activation = Literal["softplus", "exp"]
Shading = Literal["albedo", "lambertian", "textureless"]
Background = Literal["random", "white", "black", "grey", "learned"]
Group = Literal["grid", "mlp", "background"]
"""Names of a scene's parameter groups."""

UNGUIDED = ("csd", "nfsd")
"""Methods of score distillation without the guided prediction."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[float, Field(ge=0.1, le=100)]
Rate = Annotated[float, Field(gt=0, le=1)]
Box = tuple[float, float, float, float, float, float]
"""Corners x0, y0, z0 and x1, y1, z1, world units."""
Sphere = tuple[float, float, float, float]
"""Centre x, y, z and radius, world units."""


@settings("model")
class ModelConfig:
    """Which diffusion model guides, and how it is held in memory."""

    model: str = TOYBOX
    """`toybox`, a folder, a .safetensors file, or a Hub id such as
    stable-diffusion-v1-5/stable-diffusion-v1-5."""
    revision: str | None = None
    """Revision of a Hub model."""
    parts: str | None = None
    """For a single .safetensors file: a folder or Hub id with the configurations and the
    tokenizer."""
    encoder: str | None = None
    """A TAESD autoencoder (folder or Hub id) that replaces the model's own encoder."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto` is float32 on a CPU and float16 on a GPU."""
    vae_slicing: bool = False
    """Encode one view at a time."""
    cpu_offload: bool = False
    """Keep the UNet in main memory and move it to the GPU for each call; the autoencoder stays on
    the GPU."""
    offline: bool = False
    """Never contact the Hub."""


@settings("field.grid")
class HashGridConfig:
    """Multi-resolution hash grid (Instant-NGP, arXiv:2201.05989)."""

    levels: int = Field(default=8, ge=1, le=32)
    features: int = Field(default=2, ge=1, le=8)
    """Values per table entry."""
    log2_size: int = Field(default=15, ge=4, le=24)
    """Base-2 logarithm of the maximum number of entries per level."""
    coarsest: int = Field(default=16, ge=2, le=1024)
    """Resolution of the first level, cells per side."""
    finest: int = Field(default=256, le=2**16)
    """Resolution of the last level."""

    def __post_init__(self) -> None:
        if self.finest < self.coarsest:
            raise ValueError(
                f"field.grid.finest must be at least coarsest = {self.coarsest}, got {self.finest}."
            )


@settings("field")
class FieldConfig:
    """The radiance field: hash grid, MLP and density bias."""

    grid: HashGridConfig = Field(default_factory=HashGridConfig)
    backend: BackendName = "auto"
    width: int = Field(default=32, ge=1, le=1024)
    """Width of the MLP's hidden layer."""
    radius: float = Field(default=1.0, ge=0.01, le=16)
    """Half the side of the scene's cube, world units; the field is empty outside."""
    blob_density: float = Field(default=10.0, ge=0, le=1000)
    """Height of the density bias blob_density * (1 - |x| / blob_radius) before softplus (Magic3D,
    arXiv:2211.10440)."""
    blob_radius: float = Field(default=0.5, ge=0.001)
    activation: Activation = "softplus"
    """Density activation. softplus grows linearly; exp (Instant-NGP, app. E) reaches an opaque
    surface in fewer steps, for fitting photographs."""
    view_dependent: bool = False
    """Colours that depend on the viewing direction, for fitting photographs."""
    sharpness: float = Field(default=1.0, ge=1, le=1000)
    """Factor on the density at the end of a run. It grows geometrically between 20 and 80 % of the
    run, so that surfaces harden after the shape has formed; 1 is off."""

    def __post_init__(self) -> None:
        if self.blob_radius > 2 * self.radius:
            raise ValueError(
                f"field.blob_radius must be at most 2 radius = {2 * self.radius}, got "
                f"{self.blob_radius}."
            )


@settings("camera")
class CameraConfig:
    """Distribution of the training cameras. The defaults are DreamFusion's and the thesis' (preset
    `paper`)."""

    elevation_deg: tuple[float, float] = (-10.0, 90.0)
    azimuth_deg: tuple[float, float] = (0.0, 360.0)
    distance: tuple[Length, Length] = (1.0, 1.5)
    """World units from the origin."""
    focal: tuple[Length, Length] = (0.7, 1.35)
    """Multiples of the image width."""
    look_at_jitter: float = Field(default=0.05, ge=0, le=10)
    """Standard deviation of the look-at point, world units."""
    up_jitter: float = Field(default=0.02, ge=0, le=10)
    """Standard deviation added to the up vector."""
    batch: int = Field(default=1, ge=1, le=64)
    """Views per step, over all processes."""
    opposite_pairs: bool = False
    """The second half of the views of a step looks from the opposite azimuths (MV-SDI); needs an
    even batch."""
    resolution: int = Field(default=64, ge=8, le=1024)
    """Side of the square render, pixels."""

    def __post_init__(self) -> None:
        if self.opposite_pairs and self.batch % 2:
            raise ValueError(f"camera.opposite_pairs needs an even camera.batch, got {self.batch}.")
        limits = {"elevation_deg": 90, "azimuth_deg": 360, "distance": 100, "focal": 100}
        for name, limit in limits.items():
            low, high = getattr(self, name)
            if not -limit <= low <= high <= limit:
                raise ValueError(
                    f"camera.{name} must be two ascending numbers in [{-limit}, {limit}], got "
                    f"{low}, {high}."
                )


@settings("render")
class RenderConfig:
    """How rays are sampled and shaded."""

    samples: int = Field(default=96, ge=8, le=4096)
    """Steps along the longest diagonal of the scene's cube."""
    occupancy: int = Field(default=32, ge=4, le=256)
    """Cells per side of the occupancy grid."""
    occupancy_every: int = Field(default=16, ge=1, le=1000)
    """Steps between grid updates."""
    background: Background = "random"
    shading: Shading = "albedo"
    min_transmittance: float = Field(default=1e-3, ge=0, lt=1)
    """Cull samples whose transmittance is at most this; 0 keeps all."""
    kernels: Literal["auto", "torch"] = "auto"
    """`torch` disables the numba and Triton kernels, for comparison."""

    def step(self, radius: float) -> float:
        """Distance between samples, world units, in a cube of half side `radius`."""
        return 2 * radius * 3**0.5 / self.samples


@settings("distill")
class DistillConfig:
    """Score distillation: which gradient, at which noise levels (`dreamsa.distill`)."""

    method: MethodName = "sds"
    """sds (DreamFusion, arXiv:2209.14988), rescaled (MVDream), csd, nfsd, ism (LucidDreamer), sdi,
    consistent (FSD and CFD), bridge or, for edits, dds: see `dreamsa.distill.methods`."""
    guidance_scale: float = Field(default=100.0, ge=0, le=1000)
    """Classifier-free guidance; 1 is the conditional model."""
    schedule: Schedule = "uniform"
    """uniform: random timesteps between min_timestep and max_timestep. The others fall from
    max_timestep's first value to its second: linear; hifa, with the square root of the progress
    (arXiv:2305.18766); dreamtime, slowly where the noise shapes objects (arXiv:2306.12422)."""
    min_timestep: tuple[Fraction, Fraction] = (0.02, 0.02)
    """Smallest timestep as a fraction of the schedule, at the first step and from `anneal_until`
    on."""
    max_timestep: tuple[Fraction, Fraction] = (0.98, 0.98)
    """Largest timestep, likewise."""
    anneal_until: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the run over which both change linearly."""
    max_grad_norm: float = Field(default=0.0, ge=0, le=1e6)
    """Clip the latent gradient of each view to this norm; 0 is off."""
    view_contrast: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the difference between the predictions for a view and for the opposite one, which
    is added to the guided prediction until `view_contrast_until`; 0 is off. One more UNet pass."""
    view_contrast_until: Fraction = 0.5
    """Fraction of the run."""
    rescale: Fraction = 0.5
    """rescaled: how far the guided image takes the conditional one's standard deviation."""
    interval: tuple[Fraction, Fraction] = (0.1, 0.05)
    """ism: distance between its two timesteps at the first and the last step, as a fraction of the
    schedule."""
    inversion_steps: int = Field(default=4, ge=1, le=100)
    """ism, sdi: steps of the DDIM inversion."""
    inversion_scale: float = Field(default=-7.5, ge=-1000, le=1000)
    """sdi: guidance scale of the inversion."""
    inversion_noise: Fraction = 0.3
    """sdi: standard deviation of the fresh part of the inverted noise."""
    refresh: tuple[Rate, Rate] = (1e-2, 1e-4)
    """consistent: how much of the noise is replaced per step, at the first and the last step."""
    bridge_from: Fraction = 0.8
    """bridge: fraction of the run after which it replaces sds."""
    bridge_words: str = (
        ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy"
    )
    """bridge: what the prompt of a bad render says."""

    def __post_init__(self) -> None:
        for low, high in zip(self.min_timestep, self.max_timestep, strict=True):
            if low >= high:
                raise ValueError(
                    f"distill.min_timestep must be below distill.max_timestep, got {low} and "
                    f"{high}."
                )
        first, last = self.max_timestep
        if self.schedule != "uniform" and first <= last:
            raise ValueError(
                f"distill.max_timestep must fall for distill.schedule = {self.schedule}, got "
                f"{first} and {last}."
            )


@settings("views")
class ViewConfig:
    """Which text belongs to which camera angle."""

    overhead_deg: float = Field(default=60.0, gt=-90, le=90)
    """Elevation above which a view is "overhead" (DreamFusion's threshold)."""
    front_deg: float = Field(default=45.0, gt=0, lt=90)
    """The front sector is azimuth 0 plus or minus this; the back sector lies opposite, equally
    wide."""
    wording: str = "{prompt}, {view} view"
    """Must contain {prompt}. {view} becomes front, side, back or overhead; {azimuth} 000 to 345 and
    {elevation} -90 to +90, in steps of 15 degrees, between which embeddings are interpolated."""
    interpolate: bool = False
    """Interpolate the four views' embeddings by angle instead of switching between them."""
    perpendicular: float = Field(default=0.0, ge=0, le=100)
    """Strength of Perp-Neg against the other views (arXiv:2304.04968 uses 2); 0 is off."""

    def __post_init__(self) -> None:
        if "{prompt}" not in self.wording:
            raise ValueError(f"views.wording must contain {{prompt}}, got {self.wording!r}.")

    @property
    def names_angles(self) -> bool:
        """Whether the texts differ by angle, not only by view."""
        return "{azimuth}" in self.wording or "{elevation}" in self.wording


@settings("loss")
class LossConfig:
    """Weights of the regularizers. They always descend."""

    opacity: float = Field(default=0.0, ge=0, le=1e6)
    """Of mean sqrt(opacity^2 + 0.01), which favours empty space."""
    entropy: float = Field(default=0.0, ge=0, le=1e6)
    """Of the binary entropy of opacity, growing linearly over the run: rays should hit or miss."""
    orientation: float = Field(default=0.0, ge=0, le=1e6)
    """Of the Ref-NeRF orientation loss: visible normals should face the camera."""
    depth_variance: float = Field(default=0.0, ge=0, le=1e6)
    """Of the variance of the depth along rays that hit, growing linearly over the first half of the
    run (z-variance of HiFA, arXiv:2305.18766): a ray should end at one surface."""
    smoothness: float = Field(default=0.0, ge=0, le=1e6)
    """Of the total variation of the colours inside the object, growing linearly over the run:
    surfaces should have no specks."""
    correlation: float = Field(default=0.0, ge=0, le=1e6)
    """Of an edit: of 1 - the correlation of its densities with its parent's, at shared random
    points (Vox-E, arXiv:2303.12048), which uses 200."""


@settings("optimizer")
class OptimizerConfig:
    """Adam, betas (0.9, 0.99), eps 1e-15."""

    lr: Rate = 1e-2
    """Of the hash grid."""
    mlp_lr: Rate = 1e-2
    background_lr: Rate = 1e-3
    warmup: int = Field(default=50, ge=0, le=100_000)
    """Steps of linear warm-up after the moments were reset."""
    decay: Fraction = 1.0
    """Factor on the learning rate at the end of the run, reached by a cosine; 1 keeps it
    constant."""


@settings("edit.control")
class ControlConfig:
    """A control of a comparison, which replaces an edit's own escape; only `dreamsa.studies` trains
    these."""

    kind: Literal["noise", "interpolate", "regularizers"]
    """noise: one random displacement. interpolate: a displacement towards a random scene, of given
    norms.
    regularizers: ascend the opacity regularizer alone, in place of score distillation."""
    displacement: dict[Group, Annotated[float, Field(ge=0)]] | None = None
    """Norm of each parameter group's displacement; groups that are not named stay. By default noise
    moves by what Adam could move at most in `ascent_steps` at `scale`."""


@settings("edit.free")
class FreeConfig:
    """What an edit may change. Everything else is the parent's scene, bit for bit.

    The region is the union of the boxes and spheres, or the automatic one; without any, all of
    space.
    """

    keep: Keep | None = None
    """shape: the density is the parent's everywhere; colour: the colours are."""
    boxes: tuple[Box, ...] = ()
    spheres: tuple[Sphere, ...] = ()
    auto: bool = False
    """The region in which the score model's predictions for the two prompts differ, found before
    the first step."""
    grow: float = Field(default=0.0, ge=0, le=16)
    """Width of the margin around the region, world units, over which the scene blends from the
    edit's to the parent's."""
    outside: bool = False
    """Change what lies outside of the region instead."""

    def __post_init__(self) -> None:
        for x0, y0, z0, x1, y1, z1 in self.boxes:
            if not (x0 < x1 and y0 < y1 and z0 < z1):
                raise ValueError(
                    f"A box's first corner must be below its second in x, y and z, got "
                    f"box:{x0:g},{y0:g},{z0:g},{x1:g},{y1:g},{z1:g}."
                )
        for x, y, z, radius in self.spheres:
            if radius <= 0:
                raise ValueError(
                    f"A sphere's radius must be above 0, got sphere:{x:g},{y:g},{z:g},{radius:g}."
                )
        if self.auto and (self.boxes or self.spheres):
            raise ValueError("The region auto stands alone: leave out the boxes and spheres.")
        if not self.has_region and (self.grow or self.outside):
            name = "grow" if self.grow else "outside"
            raise ValueError(f"{name} needs a region, such as --region sphere:0,0,0.3,0.2.")

    @property
    def has_region(self) -> bool:
        return self.auto or bool(self.boxes or self.spheres)

    @property
    def words(self) -> str:
        """As the options of the command line: "--keep shape --region sphere:0,0,0.3,0.2"."""
        words = [f"--keep {self.keep}"] if self.keep else []
        words += [f"--region {region}" for region in self.regions]
        words += [f"--grow {self.grow:g}"] if self.grow else []
        return " ".join([*words, *(["--outside"] if self.outside else [])])

    @property
    def regions(self) -> tuple[str, ...]:
        """The region as `parse_regions` reads it."""
        shapes = [("box", box) for box in self.boxes] + [("sphere", one) for one in self.spheres]
        named = [f"{kind}:{','.join(f'{x:g}' for x in numbers)}" for kind, numbers in shapes]
        return (AUTO_REGION,) if self.auto else tuple(named)


def parse_regions(regions: Sequence[str]) -> dict[str, Any]:
    """The region of a `FreeConfig` from words: "box:x0,y0,z0,x1,y1,z1", "sphere:x,y,z,r", "auto".

    Raises:
        ValueError: A word is none of these.
    """
    shapes: dict[str, list[tuple[float, ...]]] = {"box": [], "sphere": []}
    for region in regions:
        kind, _, numbers = region.strip().partition(":")
        if region.strip() == AUTO_REGION:
            continue
        try:
            values = tuple(map(float, numbers.split(",")))
        except ValueError:
            values = ()
        if len(values) != {"box": 6, "sphere": 4}.get(kind):
            raise ValueError(
                f"A region is box:x0,y0,z0,x1,y1,z1, sphere:x,y,z,radius or auto, in world units; "
                f"got {region!r}."
            )
        shapes[kind].append(values)
    auto = any(region.strip() == AUTO_REGION for region in regions)
    return {"boxes": tuple(shapes["box"]), "spheres": tuple(shapes["sphere"]), "auto": auto}


@settings("edit")
class EditConfig:
    """An edit as numbers: how it leaves the local minimum of its parent's scene, and what it may
    change."""

    parent: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]*$", max_length=255)]
    """Id of the run that the scene was taken from: the name of a folder."""
    eta: Fraction = 0.0
    """Fraction of the way towards a random scene before the first step (Perturb-and-Revise,
    arXiv:2412.05279)."""
    ascent_steps: int = Field(default=0, ge=0)
    """Number of steps at the start that ascend."""
    scale: float = Field(default=ASCENT_SCALE, ge=0, le=100)
    """S: factor on the learning rate while ascending (thesis, eq. 9)."""
    moments: Moments = "reset"
    """Whether the optimizer's moments are reset. Only a plain edit can keep them."""
    parent_prompt: str = ""
    """The parent's prompt."""
    control: ControlConfig | None = None
    free: FreeConfig | None = None
    """What may change; None for everything."""
    beneath: tuple[FreeConfig, ...] = ()
    """Likewise of the kept edits that the parent's scene consists of, oldest first."""

    def __post_init__(self) -> None:
        if self.parent in (".", ".."):
            raise ValueError(f"edit.parent must be the id of a run, got {self.parent!r}.")
        if self.moments == "keep" and self.free:
            raise ValueError(
                "edit.moments = keep needs an edit that may change everything: the moments are "
                f"those of a complete scene. Leave out {self.free.words}."
            )
        if self.moments == "keep" and (self.eta or self.ascent_steps or self.control):
            raise ValueError(
                "edit.moments = keep needs a plain edit (eta = 0, no ascent): every other "
                "escape resets the moments."
            )

    @property
    def escape(self) -> str:
        """The named escape with these numbers; else the numbers themselves."""
        if self.control is not None:
            return f"control {self.control.kind}"
        if self.ascent_steps:
            return "anneal" if not self.eta else f"eta {self.eta:g}, then anneal"
        default = ESCAPES[DEFAULT_ESCAPE].eta
        return {0.0: "plain", default: DEFAULT_ESCAPE, 1.0: "fresh"}.get(
            self.eta, f"interpolate by {self.eta:g}"
        )


@settings()
class RunConfig:
    """Everything that decides what a run computes. The same config on the same machine gives the
    same scene."""

    prompt: str
    negative_prompt: str = ""
    steps: int = Field(default=5000, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    field: FieldConfig = Field(default_factory=FieldConfig)
    camera: CameraConfig = Field(default_factory=CameraConfig)
    render: RenderConfig = Field(default_factory=RenderConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    views: ViewConfig = Field(default_factory=ViewConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    edit: EditConfig | None = None
    save_every: int = Field(default=500, ge=1, le=1_000_000)
    """Steps between checkpoints."""
    turntable: int = Field(default=48, ge=0, le=1000)
    """Frames of a finished run's turntable, at least 8; 0 writes neither turntable nor mesh."""
    mesh: bool = True
    """Whether a finished run gets its mesh.glb."""

    def __post_init__(self) -> None:
        if self.distill.method in UNGUIDED and (
            self.distill.view_contrast or self.views.perpendicular
        ):
            raise ValueError(
                f"distill.method = {self.distill.method} does not use the guided prediction that "
                "distill.view_contrast and views.perpendicular change; set both to 0."
            )
        if self.edit is None and (self.distill.method == "dds" or self.loss.correlation):
            name = "distill.method = dds" if self.distill.method == "dds" else "loss.correlation"
            raise ValueError(f"{name} compares an edit with its parent; this run has none.")
        if self.layers and self.render.background == "learned":
            raise ValueError(
                "An edit that keeps a part of its parent needs a fixed background: "
                "--set render.background=random."
            )
        if 0 < self.turntable < 8:
            raise ValueError(f"turntable must be 0 or at least 8 frames, got {self.turntable}.")
        if self.edit is not None and self.edit.ascent_steps >= self.steps:
            raise ValueError(
                f"edit.ascent_steps must be below steps = {self.steps}, got "
                f"{self.edit.ascent_steps}: "
                "an edit must end with descent."
            )

    @property
    def layers(self) -> tuple[FreeConfig, ...]:
        """What each kept edit that the scene consists of may change, oldest first.

        An edit that is compared with its parent in training stands on it, too, and may change
        everything.
        """
        edit, compared = self.edit, self.distill.method == "dds" or self.loss.correlation > 0
        if edit is None or (edit.free is None and not compared):
            return ()
        return (*edit.beneath, edit.free or FreeConfig())


def edited(config: RunConfig, prompt: str, edit: EditConfig, steps: int) -> RunConfig:
    """The configuration of an edit: the parent's with a new prompt, number of steps and escape."""
    edit = replace(edit, parent_prompt=config.prompt, beneath=config.layers)
    return replace(config, prompt=prompt, steps=steps, edit=edit)


def same_prompt(one: str, other: str) -> bool:
    """Whether two prompts are equal up to case."""
    return one.casefold() == other.casefold()


def from_json(tree: Any) -> RunConfig:
    """A configuration from JSON, of this version or an earlier one.

    Raises:
        ValueError: Unknown names or values that are not allowed; one sentence that names the
            setting.
    """
    return from_tree(RunConfig, _upgraded(tree))


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON holds it."""
    return to_tree(config)


def read_config(path: Path) -> RunConfig:
    """A configuration file.

    Raises:
        ValueError: Missing, not JSON, or not a configuration.
    """
    try:
        return from_json(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Cannot read the configuration {path}: {error}") from error


def _upgraded(tree: Any) -> Any:
    """Translate a configuration of schemas 1 and 2: renamed settings and sections, and escapes that
    had names in place of numbers."""
    if not isinstance(tree, dict):
        return tree
    tree = {**tree}
    for section, old, new in (
        ("render", "hidden", "min_transmittance"),
        ("field", "hidden", "width"),
    ):
        part = tree.get(section)
        if isinstance(part, dict) and old in part:
            tree[section] = {(new if key == old else key): value for key, value in part.items()}
    if "sds" in tree and "distill" not in tree:
        tree["distill"] = tree.pop("sds")
    edit = tree.get("edit")
    if isinstance(edit, dict) and "escape" in edit:
        tree["edit"] = _upgraded_edit(edit)
    return tree


def _upgraded_edit(edit: dict[str, Any]) -> dict[str, Any]:
    edit = {**edit}
    escape, displacement = edit.pop("escape"), edit.pop("displacement", None)
    eta = edit.get("eta", ESCAPES["interpolate"].eta)
    moved = {"auto": eta, "interpolate": eta, "fresh": 1.0}
    if escape not in (*moved, "plain", "anneal", "noise", "regularizers"):
        raise ValueError(
            f"edit.escape {escape!r} is unknown. Write numbers instead: edit.eta, "
            "edit.ascent_steps."
        )
    edit["eta"] = 0.0 if displacement else moved.get(escape, 0.0)
    if escape in ("noise", "regularizers") or displacement:
        edit["control"] = {"kind": escape, "displacement": displacement}
    return edit
