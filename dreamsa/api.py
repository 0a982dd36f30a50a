"""The public verbs. Each checks its arguments, starts work and returns; long work is a `Job` to
iterate over."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from dreamsa import job, outputs, presets
from dreamsa import runs as runs_
from dreamsa.choices import (
    ASCENT_SCALE,
    DEFAULT_ESCAPE,
    ESCAPES,
    VIEWS,
    Channel,
    ColourMode,
    EscapeName,
    Format,
    Keep,
    Moments,
    PresetName,
)
from dreamsa.config import EditConfig, FreeConfig, RunConfig, edited, parse_regions
from dreamsa.guidance.prompts import check_prompt, view_text
from dreamsa.job import Job
from dreamsa.notebook import run_html
from dreamsa.runs import RunError, find_run, runs_folder
from dreamsa.settings import with_overrides

Folder = Path | str | None
"""A folder that holds runs; None is $DREAMSA_RUNS or ./runs."""


class Run(runs_.Run):
    """A run's folder, with the verbs that apply to it. A notebook shows its object."""

    @property
    def turntable(self) -> Path:
        """The animation of a finished run.

        Raises:
            RunError: There is none.
        """
        path = self.path / "turntable.webp"
        if not path.is_file():
            raise RunError(f"Run {self.id} has no turntable. Write it: {self.command('render')}")
        return path

    def edit(self, prompt: str, **options: Any) -> Job:
        """Start a child run; see `dreamsa.edit`."""
        return edit(self, prompt, runs=self.path.parent, **options)

    def resume(self) -> Job:
        """Continue a stopped run; see `dreamsa.resume`."""
        return resume(self, runs=self.path.parent)

    def export(self, format: Format = "glb", **options: Any) -> Path:
        """Write the object as a mesh; see `dreamsa.export`."""
        return export(self, format=format, **options)

    def _repr_html_(self) -> str:
        return run_html(self.path, self.prompt, self.status)


def _owned(started: Job) -> Job:
    """The job with a run of this module's class."""
    started.run = Run(started.run.path)
    return started


def generate(
    prompt: str = "",
    *,
    preset: PresetName | None = None,
    model: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    mesh: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    config: RunConfig | None = None,
    name: str | None = None,
    anyway: bool = False,
    runs: Folder = None,
) -> Job:
    """Start a run that turns a prompt into a scene.

        rabbit = dreamsa.generate("a rabbit", preset="draft", seed=1).wait(progress=True)

    Args:
        prompt: The object. Taken from `config` when empty.
        preset: draft, standard (the default) or fine: a third, all or twice the usual steps of the
            model; or a complete configuration by name: toybox, sd or paper.
        model: toybox (the embedded one), sd15, sd21, a folder, a .safetensors file or a Hub id.
        steps, seed, device, mesh: Settings of the same names; they override preset and `config`.
        overrides: Other settings, as `with_overrides` takes them.
        config: The complete configuration, in place of a preset.
        name: The run's id; by default made of its prompt.
        anyway: Accept words that the embedded model does not know.
        runs: The folder that holds runs; by default $DREAMSA_RUNS or ./runs.

    Raises:
        ValueError: What is wrong with the arguments, in one sentence.
    """
    given = {"steps": steps, "seed": seed, "device": device, "mesh": mesh}
    config = generation(prompt, preset, model, given | dict(overrides or {}), config)
    return _owned(job.start(config, None, runs_folder(runs), name=name, anyway=anyway))


def generation(
    prompt: str,
    preset: PresetName | None = None,
    model: str | None = None,
    changes: Mapping[str, Any] | None = None,
    config: RunConfig | None = None,
) -> RunConfig:
    """The configuration of a generation; `generate` describes the arguments.

    Args:
        changes: Settings by dotted name; None leaves one as it is.
    """
    if config is not None and preset is not None:
        raise ValueError(
            f"config and preset {preset!r} both give a whole configuration. Leave one out."
        )
    if config is None:
        config = presets.preset(preset or "standard", prompt, model)
    given = {"prompt": prompt or None, "model.model": model, **(changes or {})}
    config = with_overrides(config, {k: v for k, v in given.items() if v is not None})
    if config.edit is not None:
        raise ValueError(
            "This configuration is an edit's, which needs its parent. Use edit, or resume."
        )
    return config


def edit(
    parent: runs_.Run | str | Path,
    prompt: str,
    *,
    escape: EscapeName | None = None,
    eta: float | None = None,
    ascent_steps: int | None = None,
    scale: float = ASCENT_SCALE,
    moments: Moments = "reset",
    strength: float | None = None,
    keep: Keep | None = None,
    region: str | Sequence[str] = (),
    grow: float = 0.0,
    outside: bool = False,
    steps: int | None = None,
    preset: PresetName | None = None,
    seed: int | None = None,
    device: str | None = None,
    mesh: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    anyway: bool = False,
    runs: Folder = None,
) -> Job:
    """Start a child run: the parent's scene, resumed on another prompt. The parent is never written
    to.

    Kept: the scene's parameters. Reset: optimizer moments (unless `moments` is "keep"), the step
    and with it every schedule, and the occupancy grid.

    Args:
        escape: interpolate, anneal, plain or fresh: a preset of the numbers below, see
            `choices.ESCAPES`. By default interpolate; anneal if `ascent_steps` is given, plain if
            `moments` is "keep".
        eta: Fraction of the way towards a random scene before the first step, in [0, 1].
        ascent_steps: Number of steps at the start that ascend on the new prompt.
        scale: S, the factor on the learning rate while ascending.
        strength: How much to change, in [0, 1], in place of escape and eta: `presets.strength_of`.
        keep: shape keeps the density, colour the colours of the parent, bit for bit.
        region: What may change: box:x0,y0,z0,x1,y1,z1 and sphere:x,y,z,radius in world units, or
            auto, where the score model's predictions for the two prompts differ. Everything
            outside stays the parent's, bit for bit.
        grow: Width of the margin around the region over which the two are blended.
        outside: Change what lies outside of the region instead.
        steps: All steps of the edit, including the ascent; by default the preset's.
        seed, device, mesh: Settings of the same names; by default the parent's.
        overrides: Other settings, as `with_overrides` takes them.
        name: The new run's id; by default made of its prompt.
        anyway: Accept words that the embedded model does not know.

    Raises:
        ValueError: What is wrong with the arguments, in one sentence. RunError: The parent is
            missing or has no checkpoint. An unfinished parent's newest one is used, with a warning.
    """
    folder = runs_folder(runs)
    found = find_run(parent, folder)
    child = edit_config(
        found,
        prompt,
        escape=escape,
        eta=eta,
        ascent_steps=ascent_steps,
        scale=scale,
        moments=moments,
        strength=strength,
        keep=keep,
        region=region,
        grow=grow,
        outside=outside,
        steps=steps,
        preset=preset,
        changes={"seed": seed, "device": device, "mesh": mesh, **(overrides or {})},
    )
    return _owned(job.start(child, found, folder, name=name, anyway=anyway))


def free_config(
    keep: Keep | None, region: str | Sequence[str], grow: float, outside: bool
) -> FreeConfig | None:
    """What an edit may change, from the arguments of `edit`; None for everything.

    Raises:
        ValueError: A region cannot be read or is empty, or a number is out of range.
    """
    regions = [region] if isinstance(region, str) else list(region)
    if keep is None and not regions and not grow and not outside:
        return None
    return FreeConfig(keep, grow=grow, outside=outside, **parse_regions(regions))


def preview_edit(
    parent: runs_.Run | str | Path, prompt: str, *, runs: Folder = None, **options: Any
) -> tuple[RunConfig, Path | None]:
    """Check an edit without starting it. Returns its configuration and, if it has a region, the
    image of that on the parent, in RUNS/regions.

    Args:
        options: As `edit` takes them.

    Raises:
        ValueError: As `edit`.
    """
    folder = runs_folder(runs)
    found = find_run(parent, folder)
    return job.preview(edit_config(found, prompt, **options), found, folder)


def edit_config(
    parent: runs_.Run,
    prompt: str,
    *,
    escape: EscapeName | None = None,
    eta: float | None = None,
    ascent_steps: int | None = None,
    scale: float = ASCENT_SCALE,
    moments: Moments = "reset",
    strength: float | None = None,
    keep: Keep | None = None,
    region: str | Sequence[str] = (),
    grow: float = 0.0,
    outside: bool = False,
    steps: int | None = None,
    preset: PresetName | None = None,
    changes: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of an edit; `edit` describes arguments and errors.

    Args:
        changes: Settings by dotted name; None leaves one as it is.
    """
    parent.require_scene()
    before = parent.config
    has_moments = (parent.latest_checkpoint / "training.safetensors").is_file()
    if moments == "keep" and not has_moments:
        raise RunError(
            f"Run {parent.id} was shipped without its optimizer's moments, so they cannot be kept. "
            "Use --moments reset."
        )
    if strength is not None:
        if (escape, eta, ascent_steps) != (None, None, None):
            raise ValueError(
                "strength sets eta and the steps: leave out escape, eta, ascent_steps."
            )
        usual, _ = presets.edit_length(before, steps, name=preset)
        eta, factor = presets.strength_of(strength)
        steps = steps or max(round(usual * factor), 1)
    if escape is None:
        plain = moments == "keep"
        escape = "anneal" if ascent_steps else "plain" if plain else DEFAULT_ESCAPE
    if escape not in ESCAPES:
        raise ValueError(f"There is no escape {escape!r}. Escapes: {', '.join(ESCAPES)}.")
    row = ESCAPES[escape]
    steps, usual_ascent = presets.edit_length(before, steps, name=preset)
    if ascent_steps is None:
        ascent_steps = usual_ascent if row.ascends else 0
    eta = row.eta if eta is None else eta
    free = free_config(keep, region, grow, outside)
    numbers = EditConfig(parent.id, eta, ascent_steps, scale, moments, free=free)
    given = {k: v for k, v in (changes or {}).items() if v is not None}
    return with_overrides(edited(before, prompt, numbers, steps), given)


def resume(run: runs_.Run | str | Path, *, runs: Folder = None) -> Job:
    """Continue a stopped run from its newest complete checkpoint; bit-identical on a CPU.

    Raises:
        RunError: It is finished, in use, or a control of a comparison, which the comparison
            resumes.
    """
    folder = runs_folder(runs)
    found = find_run(run, folder)
    edit = found.config.edit
    if edit is not None and edit.control is not None:
        raise RunError(
            f"Run {found.id} is a control of a comparison. Resume it by repeating the command "
            "of the comparison: "
            "dreamsa compare or dreamsa benchmark edits."
        )
    return _owned(job.resume(found, folder))


def render(
    run: runs_.Run | str | Path,
    *,
    frames: int = 60,
    resolution: int = 256,
    channel: Channel = "rgb",
    out: Path | str | None = None,
    stage: Callable[[str], None] = outputs.silent,
    runs: Folder = None,
) -> list[Path]:
    """Write a run's turntable again, at any size. Returns the files.

    Args:
        frames: 8 to 1000.
        resolution: Side of a frame in pixels, even, 16 to 2048.
        channel: rgb writes turntable.mp4, turntable.webp, the contact sheet and the README; depth
            (white is near) and normal (right, up and towards the camera as red, green and blue)
            write turntable-CHANNEL.mp4 and .webp.
        out: A folder for the files, in place of the run's own; created if it is missing.
        stage: Called with the name of each stage.

    Raises:
        ValueError: Sizes out of range, or no such channel. RunError: No checkpoint.
    """
    if not 8 <= frames <= 1000:
        raise ValueError(f"frames must lie in [8, 1000], got {frames}.")
    if not 16 <= resolution <= 2048 or resolution % 2:
        raise ValueError(
            f"resolution must be an even number in [16, 2048] pixels, got {resolution}."
        )
    if channel not in get_args(Channel):
        raise ValueError(
            f"There is no channel {channel!r}. Channels: {', '.join(get_args(Channel))}."
        )
    found = find_run(run, runs_folder(runs))
    found.require_scene()
    folder = Path(out).expanduser() if out is not None else None
    if folder is not None:
        _make_folder(folder)
    scene = outputs.load_scene(found)
    if channel == "rgb":
        return outputs.write_outputs(found, scene, frames, resolution, folder, stage)
    stage(f"{frames} pictures")
    images = outputs.orbit_images(scene, found.config.camera, frames, resolution, channel=channel)
    return outputs.write_turntable(images, (folder or found.path) / f"turntable-{channel}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made a folder: {error.strerror or error}. Name another with --out."
        ) from error


def export(
    run: runs_.Run | str | Path,
    *,
    format: Format = "glb",
    out: Path | str | None = None,
    resolution: int = 128,
    texture: int = 1024,
    faces: int | None = 20_000,
    colour: ColourMode = "texture",
    scale: float = 1.0,
    unlit: bool = True,
    stage: Callable[[str], None] = outputs.silent,
    runs: Folder = None,
) -> Path:
    """Write a run's object as a mesh. Needs neither a GPU nor OpenGL. Returns the file.

    An unfinished run's newest checkpoint is used, with a warning.

    Args:
        format: glb and obj have a texture, or colours per vertex; ply has colours per vertex; stl
            has no colours.
        out: A file, or an existing folder. By default `mesh.FORMAT` in the run's folder; for obj,
            which is three files, `mesh-obj/mesh.obj`. An obj whose name ends in .zip is one zip of
            the three.
        resolution: Cells along the object's longest side, 16 to 512.
        texture: Side of the texture in texels, 64 to 4096.
        faces: Maximum number of faces, 100 to 2,000,000; None keeps all faces of marching cubes.
        scale: Written units per world unit; an object is about 1 long. glTF's unit is the metre.
        unlit: In a glb, ask viewers to show the colours without lighting.
        stage: Called with the name of each stage.

    Raises:
        ValueError: What is wrong with the arguments, in one sentence. RunError: The run is missing
            or has no checkpoint.
        EmptyScene: The scene has no visible object; nothing is written.
    """
    found = find_run(run, runs_folder(runs))
    return outputs.export_mesh(
        found,
        format=format,
        out=out,
        resolution=resolution,
        texture=texture,
        faces=faces,
        colour=colour,
        scale=scale,
        unlit=unlit,
        stage=stage,
    )


def list_runs(folder: Folder = None) -> list[Run]:
    """All readable runs, oldest first."""
    return [Run(run.path) for run in runs_.list_runs(runs_folder(folder))]


def show(run: runs_.Run | str | Path, folder: Folder = None) -> dict[str, Any]:
    """A run's record with its current status, folder and newest metrics."""
    found = find_run(run, runs_folder(folder))
    metrics = found.metrics()
    newest = metrics[-1] if metrics else None
    return {
        **found.record,
        "id": found.id,
        "status": found.status,
        "path": str(found.path),
        "metrics": newest,
    }


def prompts(prompt: str, config: RunConfig | None = None) -> dict[str, str]:
    """The exact text that the text encoder receives for each view."""
    prompt = check_prompt(prompt)
    views = (config or presets.preset("toybox", prompt)).views
    return {view: view_text(views, prompt, view) for view in VIEWS}
