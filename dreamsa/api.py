"""The facade: the command line, the web page and Python all start here.

Long work is a `Job`: a generator of `Progress` whose arguments are checked, and whose run is created, before it is returned.
"""

import json
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from dreamsa import __version__, checkpoint
from dreamsa.annealing import Snapshots
from dreamsa.auto import REPAIR
from dreamsa.config import ASCENDING, DEFAULT_ESCAPE, EDIT_STEPS, EditConfig, Escape, PresetName, RunConfig, edited, preset
from dreamsa.export.video import NoFfmpeg, contact_sheet, depth_pictures, normal_pictures, write_mp4, write_png, write_webp
from dreamsa.fields.hashgrid import resolve_backend
from dreamsa.guidance.prompts import VIEWS, ViewPrompt, check_prompt
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.guidance.stable_diffusion import ModelConfig, StableDiffusion, check_prompt_words, locate_model
from dreamsa.processes import Processes
from dreamsa.render.cameras import CameraConfig, Cameras, camera_rays, orbit, viewing_camera
from dreamsa.render.shading import depth_normals
from dreamsa.render.volume import resolve_kernels
from dreamsa.runs import Run, RunError, find_run, list_runs, new_run, runs_folder
from dreamsa.scene import Scene
from dreamsa.train import MAX_SKIPPED, StepResult, Training, displacement, new_training, sds_step

if TYPE_CHECKING:
    from dreamsa.export.files import Format
    from dreamsa.export.project import Photograph

PREVIEW_SECONDS = 5.0
Channel = Literal["rgb", "depth", "normal"]
LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""


class Progress(NamedTuple):
    """Where a run is after one step."""

    run: Run
    step: int
    """Steps done."""
    steps: int
    phase: str
    """ascend, ascend regularizers, watch or descend."""
    result: StepResult
    seconds_per_step: float
    eta_seconds: float
    preview: Path | None
    """The newest preview picture."""
    scene: Scene
    """As it is now, for looking at; the next step changes it."""


@dataclass
class Job:
    """A run under way. Iterate over it for Progress, or `wait()` for the finished run. Leaving the loop saves the run."""

    run: Run
    _steps: Generator[Progress]

    def __iter__(self) -> Iterator[Progress]:
        return self._steps

    def wait(self) -> Run:
        """Go on to the end; returns the run."""
        for _ in self._steps:
            pass
        return self.run

    def stop(self) -> None:
        """Save and leave; `resume` goes on from here. Does nothing once the job is over."""
        self._steps.close()


def device_for(name: str) -> torch.device:
    """The device that a name means; `auto` is the GPU when there is one.

    Raises:
        ValueError: Unknown, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no device {name!r}. Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("Device cuda was asked for, but torch sees no GPU here. Use --device cpu, or see `dreamsa doctor`.")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"Device {name!r} is not supported. Use auto, cpu, cuda or cuda:N.")
    return device


def check(config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    """Everything that can be found wrong before heavy work: (the config with its prompt cleaned, facts for the record)."""
    config = replace(
        config,
        prompt=check_prompt(config.prompt),
        negative_prompt=check_prompt(config.negative_prompt, "negative prompt") if config.negative_prompt else "",
    )
    locate_model(config.model)
    check_prompt_words(config.prompt, config.model)
    device = device_for(config.device)
    backend, reason = resolve_backend(config.field.backend, device)
    kernels, _ = resolve_kernels(device, config.render.kernels)
    Processes.current().share(config.camera.batch, "camera.batch")
    return config, {"device": str(device), "backend": backend, "backend_reason": reason, "kernels": kernels, "torch": torch.__version__}


def generate(prompt: str = "", *, config: RunConfig | None = None, name: PresetName = "toybox", runs: Path | str | None = None) -> Job:
    """Start a run that turns a prompt into a scene.

    Args:
        prompt: What to make. Taken from `config` when empty.
        config: The whole configuration; by default the preset `name`.
        runs: Folder that holds runs; by default $DREAMSA_RUNS or ./runs.

    Raises:
        ValueError: Anything that is wrong with the arguments, in one sentence.
    """
    config = preset(name, prompt) if config is None else replace(config, prompt=prompt or config.prompt)
    if config.edit is not None:
        raise ValueError("This configuration is an edit's; it needs its parent. Use edit, or resume.")
    config, facts = check(config)
    run = _shared_run(config, None, runs_folder(runs), facts)
    return Job(run, _work(run, config))


def edit(
    parent: Run | str | Path,
    prompt: str,
    *,
    escape: Escape | None = None,
    steps: int | None = None,
    ascent_steps: int | None = None,
    scale: float = 0.01,
    eta: float = 0.6,
    moments: str = "reset",
    displacement: dict[str, float] | None = None,
    name: PresetName | None = None,
    seed: int | None = None,
    overrides: dict[str, Any] | None = None,
    runs: Path | str | None = None,
) -> Job:
    """Start a child run: the parent's scene, resumed on another prompt, with a way out of its local minimum.

    The parent is never written to. Kept: the scene's parameters. Reset: optimizer moments (unless `moments` is "keep"),
    step count and with it every schedule, and the occupancy grid.

    Args:
        escape: interpolate, auto, anneal, plain, fresh, noise or regularizers; see EditConfig. By default interpolate; anneal where `ascent_steps` says
            how long to climb, plain where `moments` is "keep", as every other way forgets them.
        steps: All steps of the edit, the ascent's among them.
        scale: S, the factor on the learning rate while ascending.
        displacement: How far noise or interpolate move each parameter group, in place of what scale and eta say.
        overrides: Other configuration changes, as `with_overrides` takes them.

    Raises:
        ValueError: Anything that is wrong with the arguments; RunError if the parent is missing or unfinished.
    """
    folder = runs_folder(runs)
    parent = find_run(parent, folder)
    before = parent.config
    if parent.status != "finished":
        raise RunError(f"Run {parent.id} is {parent.status}, not finished. Finish it first: dreamsa resume {parent.id}")
    if not (parent.latest_checkpoint / "training.safetensors").is_file() and moments == "keep":
        raise RunError(f"Run {parent.id} was shipped without its optimizer's moments, so they cannot be kept. Use --moments reset.")
    escape = escape or ("anneal" if ascent_steps is not None else "plain" if moments == "keep" else DEFAULT_ESCAPE)
    if moments == "keep" and escape != "plain":
        raise ValueError(f"Moments can be kept by the escape plain alone; {escape} forgets them. Use --escape plain, or leave moments out.")
    steps, ascent_steps = edit_length(before, steps, ascent_steps, name)
    if escape not in (*ASCENDING, "noise"):
        ascent_steps = 0
    how = EditConfig(parent.id, escape, ascent_steps, scale, eta, moments, displacement)  # pyright: ignore[reportArgumentType]
    child = edited(before, prompt, how, steps)
    child = with_overrides(child if seed is None else replace(child, seed=seed), overrides or {})
    child, facts = check(child)
    run = _shared_run(child, parent, folder, facts)
    return Job(run, _work(run, child, parent=parent))


def edit_length(
    parent: RunConfig, steps: int | None = None, ascent_steps: int | None = None, name: PresetName | None = None
) -> tuple[int, int]:
    """Steps of an edit, and how many of them ascend: what is given, else the preset's, else the preset's share."""
    default_steps, default_ascent = EDIT_STEPS[name or ("toybox" if parent.model.model == "toybox" else "paper")]
    steps = default_steps if steps is None else steps
    return steps, round(steps * default_ascent / default_steps) if ascent_steps is None else ascent_steps


def resume(run: Run | str | Path, *, runs: Path | str | None = None) -> Job:
    """Go on with a stopped run exactly where it was; on a CPU, to the bit.

    Raises:
        RunError: It is finished, in use, or has no whole checkpoint (a run that never saved starts from its beginning).
    """
    folder = runs_folder(runs)
    run = find_run(run, folder)
    status = run.status
    if status == "finished":
        raise RunError(f'Run {run.id} is finished. To change it, use: dreamsa edit {run.id} "a new prompt"')
    config, _ = check(run.config)
    with run.lock():
        pass
    parent = parent_of(run, folder)
    if config.edit and parent is None and checkpoint.latest(run.checkpoints) is None:
        raise RunError(
            f"Run {run.id} has no checkpoint, and its parent {config.edit.parent} is not beside it. Bring the parent back, or name its folder with --runs."
        )
    return Job(run, _work(run, config, parent=parent, going_on=True))


def parent_of(run: Run, folder: Path) -> Run | None:
    """The run that an edit was made from, beside it or in `folder`; None for a generation, or where it is gone or damaged."""
    edit = run.config.edit
    for home in (run.path.parent, folder) if edit else ():
        found = Run((home / edit.parent).resolve())  # pyright: ignore[reportOptionalMemberAccess]
        if (found.path / "run.json").is_file() and checkpoint.latest(found.checkpoints) is not None:
            return found
    return None


def with_overrides(config: RunConfig, overrides: dict[str, Any]) -> RunConfig:
    """A configuration with some values changed: {"sds.guidance_scale": 30, "steps": 100}.

    Raises:
        ValueError: Unknown key or bad value.
    """
    from dreamsa.config import from_json, to_json

    if not overrides:
        return config
    tree = to_json(config)
    for key, value in overrides.items():
        *path, last = key.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ValueError(f"There is no setting {key!r}. See the config.json of any run.")
        node[last] = value
    return from_json(tree)


def _shared_run(config: RunConfig, parent: Run | None, folder: Path, facts: dict[str, Any]) -> Run:
    """A new run, made by the first process and told to the others."""
    processes = Processes.current()
    if processes.count == 1:
        return new_run(config, parent, folder, facts)
    from accelerate.utils import broadcast_object_list

    told = [str(new_run(config, parent, folder, facts).path) if processes.rank == 0 else ""]
    broadcast_object_list(told)
    return Run(Path(told[0]))


def _work(run: Run, config: RunConfig, parent: Run | None = None, going_on: bool = False) -> Generator[Progress]:
    processes = Processes.current()
    if processes.rank > 0:
        yield from _train(run, config, parent, going_on, processes)
        return
    with run.lock():
        run.update(status="running")
        try:
            yield from _train(run, config, parent, going_on, processes)
        except (GeneratorExit, KeyboardInterrupt):
            run.update(status="stopped")
            raise
        except BaseException as error:
            with suppress(OSError):  # a full disk: what failed is told by the error itself
                run.update(status="failed", error=f"{type(error).__name__}: {error}"[:2000])
            if isinstance(error, OSError):
                raise RunError(
                    f"Run {run.id} broke off: {error}. What it had saved is whole. When the disk can be written, go on with: "
                    f"dreamsa resume {run.id}"
                ) from error
            raise


def _train(run: Run, config: RunConfig, parent: Run | None, going_on: bool, processes: Processes) -> Generator[Progress]:
    device = device_for(config.device)
    training = new_training(config, device)
    newest = checkpoint.latest(run.checkpoints) if going_on else None
    if parent is not None:
        take_parent(training, parent)
    start = Snapshots()
    if parent is not None or config.edit is None:  # else where an edit began is not known any more
        start.take(training.scene.parameters())
    if newest is not None:
        training.load(newest)
    first = processes.rank == 0
    if first:
        run.cut_metrics(training.step)
        (run.path / "previews").mkdir(exist_ok=True)
    score = StableDiffusion.shared(config.model, device)
    prompt = ViewPrompt(score, config.prompt, config.negative_prompt, config.views)
    preview, shown, seconds, begun = None, time.monotonic(), 0.0, training.step
    if first and config.edit is not None and config.edit.escape == "auto" and training.watch is None:
        run.update(decision=REPAIR)
    try:
        while training.step < config.steps:
            result = sds_step(training, score, prompt, processes)
            if training.skipped_in_a_row >= MAX_SKIPPED:
                raise GuidanceFailed(
                    f"The guidance returned values that are not finite {MAX_SKIPPED} steps in a row, up to step {training.step} "
                    f"of {config.prompt!r}. The last checkpoint is whole; try --set model.dtype=float32 or a lower guidance scale."
                )
            early = training.step <= begun + 2  # kernels are compiled in the first step, and auto asks about the parent
            seconds = result.seconds if early else 0.95 * seconds + 0.05 * result.seconds
            done = training.step == config.steps
            if first:
                if result.step % LOG_EVERY == 0 or done or result.skipped or training.annealer.edge:
                    _log(run, result, displacement(training.optimizer, start.values[0]) if start.values else None)
                if time.monotonic() - shown > PREVIEW_SECONDS or done:
                    preview, shown = _preview(run, training), time.monotonic()
                if training.watch is not None and training.step == training.watch.steps + 1:
                    run.update(decision=training.watch.decision)
                if training.step % config.save_every == 0 and not done:
                    _save(run, training)
            left = (config.steps - training.step) * seconds
            yield Progress(run, training.step, config.steps, result.phase, result, seconds, left, preview, training.scene)
    except (GeneratorExit, KeyboardInterrupt):
        if first:
            _save(run, training)
        raise
    if first:
        _save(run, training)
        write_outputs(run, training.scene, config.turntable)
        run.update(status="finished", step=training.step, skipped=training.skipped)


def take_parent(training: Training, parent: Run) -> None:
    """Start from the parent's scene and, where the edit keeps them, its optimizer's moments."""
    tensors, state = checkpoint.load(parent.latest_checkpoint)
    training.scene.restore(tensors["scene"])
    edit_ = training.config.edit
    if edit_ is not None and edit_.moments == "keep":
        rates = [group["lr"] for group in training.optimizer.param_groups]
        checkpoint.unpack_optimizer(training.optimizer, tensors["training"], state["optimizer"])
        for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _save(run: Run, training: Training) -> None:
    target = run.checkpoints / f"{training.step:08d}"
    if not target.exists():
        training.save(target)
        checkpoint.prune(run.checkpoints)
    run.update(step=training.step)


def _log(run: Run, result: StepResult, moved: dict[str, float] | None) -> None:
    """One line of metrics.jsonl: the step's numbers, and how far each parameter group now is from where the run began."""
    values = {**result._asdict(), "displacement": moved}
    finite = {key: value if not isinstance(value, float) or np.isfinite(value) else None for key, value in values.items()}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(finite) + "\n")


def pictures(
    scene: Scene, camera: CameraConfig, count: int, resolution: int, elevation_deg: float = 15.0, channel: Channel = "rgb"
) -> np.ndarray:
    """`count` views around the object, uint8 [count, h, w, 3]: its colours, its depth or its normals."""
    from dreamsa.toybox.renderer import to_uint8

    device = scene.occupancy.density.device
    cameras = orbit([360 * i / count for i in range(count)], elevation_deg, **viewing_camera(camera)).to(device)
    view = scene.look(cameras, resolution)
    if channel == "rgb":
        return to_uint8(view.rgb)
    opacity = view.opacity.cpu().numpy()
    if channel == "depth":
        return depth_pictures(view.depth.cpu().numpy(), opacity)
    along = torch.einsum("bhwi,bij->bhwj", camera_rays(cameras, resolution, resolution)[1], cameras.pose[:, :, :3])
    return normal_pictures(depth_normals(along * view.depth[..., None], view.opacity > 0.1).cpu().numpy(), opacity)


def _preview(run: Run, training: Training) -> Path:
    path = run.path / "previews" / f"{training.step:08d}.png"
    write_png(contact_sheet(pictures(training.scene, training.config.camera, 4, 64), 4, magnify=2), path)
    return path


def write_outputs(run: Run, scene: Scene, frames: int = 60, resolution: int = 128) -> list[Path]:
    """Turntable (mp4 and webp) of that many frames, contact sheet and README of a run. Returns what was written."""
    camera = run.config.camera
    made = pictures(scene, camera, frames or 8, resolution)
    sheet = contact_sheet(np.concatenate([made[:: len(made) // 8][:8], pictures(scene, camera, 4, resolution, 70.0)]), 4)
    write_png(sheet, run.path / "contact_sheet.png")
    turntables = _write_turntable(made, run.path / "turntable") if frames else []
    checkpoint.write_atomic(run.path / "README.md", _readme(run).encode())
    return [run.path / "contact_sheet.png", *turntables, run.path / "README.md"]


def _write_turntable(frames: np.ndarray, stem: Path) -> list[Path]:
    """STEM.webp and, where there is ffmpeg, STEM.mp4."""
    written = [stem.with_name(f"{stem.name}.webp"), stem.with_name(f"{stem.name}.mp4")]
    write_webp(frames, written[0])
    try:
        write_mp4(frames, written[1])
    except NoFfmpeg as error:
        warnings.warn(str(error), stacklevel=3)
        del written[1]
    return written


def _readme(run: Run) -> str:
    record = run.record
    lineage = "\n".join(f"{i + 1}. {step['prompt']} (`{step['id']}`)" for i, step in enumerate(record["lineage"]))
    return (
        f"# {record['prompt']}\n\n![twelve views](contact_sheet.png)\n\n"
        + (f"Made by editing:\n\n{lineage}\n\n" if lineage else "")
        + ("Turntable: `turntable.mp4`, `turntable.webp`. " if (run.path / "turntable.webp").exists() else "")
        + f"{record['steps']} steps, seed {run.config.seed}, dreamsa {record['version']}.\n\n"
        + f'Change it: `dreamsa edit {record["id"]} "a new prompt"`\n\n'
        + f"Take it along as a mesh: `dreamsa export {record['id']} --format glb`\n"
    )


def load_scene(run: Run, device: str = "auto") -> Scene:
    """A run's scene from its newest checkpoint."""
    config = run.config
    scene = Scene(config.field, config.render, config.seed, device_for(device))
    scene.restore(checkpoint.load(run.latest_checkpoint).tensors["scene"])
    return scene


def render(
    run: Run | str | Path,
    *,
    frames: int = 60,
    resolution: int = 256,
    channel: Channel = "rgb",
    runs: Path | str | None = None,
) -> list[Path]:
    """Write a run's turntable anew, at any size. Returns the files.

    Args:
        channel: rgb writes turntable.mp4, turntable.webp, the contact sheet and the README; depth (white is near) and normal
            (right, up and towards the camera as red, green and blue) write turntable-CHANNEL.mp4 and .webp.

    Raises:
        ValueError: Sizes out of range, or no such channel; RunError without a checkpoint.
    """
    if not 8 <= frames <= 1000:
        raise ValueError(f"frames must lie in [8, 1000], got {frames}.")
    if not 16 <= resolution <= 2048 or resolution % 2:
        raise ValueError(f"resolution must be an even number in [16, 2048] pixels, got {resolution}.")
    if channel not in get_args(Channel):
        raise ValueError(f"There is no channel {channel!r}. There are: {', '.join(get_args(Channel))}.")
    found = find_run(run, runs_folder(runs))
    scene = load_scene(found)
    if channel == "rgb":
        return write_outputs(found, scene, frames, resolution)
    made = pictures(scene, found.config.camera, frames, resolution, channel=channel)
    return _write_turntable(made, found.path / f"turntable-{channel}")


def export(
    run: Run | str | Path,
    *,
    format: "Format" = "glb",
    out: Path | str | None = None,
    resolution: int = 128,
    texture: int = 1024,
    faces: int | None = 20_000,
    colour: Literal["texture", "vertex"] = "texture",
    scale: float = 1.0,
    unlit: bool = True,
    stage: Callable[[str], None] = lambda text: None,
    runs: Path | str | None = None,
) -> Path:
    """Write a finished run's object as a mesh. Needs neither a GPU nor OpenGL. Returns the file.

    Args:
        format: glb and obj have a texture, or colours per vertex; ply has colours per vertex; stl has no colours.
        out: A file, or a folder that is there. By default `mesh.FORMAT` in the run's folder; for obj, which is three files,
            `mesh-obj/mesh.obj`. An obj whose name ends in .zip is one zip of the three.
        resolution: Cells along the object's longest side, 16 to 512.
        texture: Side of the texture in texels, 64 to 4096.
        faces: Most faces, 100 to 2,000,000; None keeps all that marching cubes makes.
        scale: Written units per world unit; an object is about 1 long. glTF's unit is the metre.
        unlit: In a glb, ask viewers to show the colours as they are, without lights of their own.
        stage: Is told what is being done.

    Raises:
        ValueError: What is wrong with the arguments, in one sentence. RunError: the run is missing or unfinished.
        EmptyScene: There is nothing to show, and why. Nothing is written then.
    """
    from dreamsa.export.asset import Colour, make_asset
    from dreamsa.export.files import FORMATS, write_asset
    from dreamsa.export.mesh import EmptyScene

    if format not in FORMATS:
        raise ValueError(f"There is no format {format!r}. There are: {', '.join(FORMATS)}.")
    if colour not in ("texture", "vertex"):
        raise ValueError(f"colour must be texture or vertex, got {colour!r}.")
    for name, value, low, high in (("resolution", resolution, 16, 512), ("texture", texture, 64, 4096), ("faces", faces, 100, 2_000_000)):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low}, {high}], got {value}.")
    if not 0 < scale < 1e6:
        raise ValueError(f"scale must lie in (0, 1000000) units per world unit, got {scale}.")
    found = find_run(run, runs_folder(runs))
    if found.status != "finished":
        raise RunError(f"Run {found.id} is {found.status}, not finished. Finish it first: dreamsa resume {found.id}")
    path = _mesh_path(found, format, out)
    scene = load_scene(found)
    kinds: dict[str, Colour] = {"ply": "vertex", "stl": "none"}
    device = scene.occupancy.density.device
    try:
        asset = make_asset(
            scene.query, *scene.box(), resolution=resolution, faces=faces, colour=kinds.get(format, colour), texture=texture,
            photographs=lambda: photographs(scene, around(found.config.camera)), device=device, stage=stage,
        )  # fmt: skip
    except EmptyScene as error:
        raise EmptyScene(
            f"Run {found.id} cannot be exported: {error}. Look at its contact_sheet.png, and train it longer or anew."
        ) from error
    stage(f"write {path.name}")
    record = found.record
    about = {"prompt": record["prompt"], "run": found.id, "seed": found.config.seed, "version": __version__}
    path.parent.mkdir(exist_ok=True)  # mesh-obj
    write_asset(asset, path, format, about, scale, unlit)
    return path


def photographs(scene: Scene, cameras: Cameras, size: int = 40) -> "list[Photograph]":
    """Pictures of the object's own colours, without background, for an export to fit its colours to. Few pixels do: only the smooth part of the
    difference is asked for."""
    from dreamsa.export.project import Photograph

    view = scene.look(cameras, size, 0.0)
    opacity = view.opacity.cpu().double().numpy()
    own = np.clip(view.rgb.movedim(1, -1).cpu().double().numpy() / np.maximum(opacity, 1e-3)[..., None], 0, 1)
    poses, focals = cameras.pose.cpu().double().numpy(), cameras.focal.tolist()
    return [Photograph(*one) for one in zip(poses, focals, own, opacity, strict=True)]


def around(config: CameraConfig) -> Cameras:
    """24 viewing cameras all around and above the object; none of them is one of those that `dreamsa.evaluate` looks through."""
    rings = ((0, 8, 10.0), (20, 8, 32.5), (45, 6, 0.0), (80, 2, 0.0))  # elevation and number of cameras, azimuth of the first
    orbits = [orbit([first + 360 * i / n for i in range(n)], elevation, **viewing_camera(config)) for elevation, n, first in rings]
    return Cameras(*(torch.cat(values) for values in zip(*(vars(one).values() for one in orbits), strict=True)))


def _mesh_path(run: Run, format: str, out: Path | str | None) -> Path:
    """Where an export goes; that it can be written there is tried out first.

    Raises:
        ValueError: It cannot, or the name does not fit the format.
    """
    if out is None and format == "obj":
        path = run.path / "mesh-obj" / "mesh.obj"
    else:
        path = Path(out if out is not None else run.path / f"mesh.{format}").expanduser()
    if path.is_dir():
        path = path / f"{run.id}.{format}"
    endings = (".obj", ".zip") if format == "obj" else (f".{format}",)
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path} does not end in {' or '.join(endings)}, which --format {format} writes.")
    try:
        with tempfile.NamedTemporaryFile(prefix=".tmp-", dir=run.path if out is None else path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}. Name another file with --out.") from error
    return path


def prompts(prompt: str, config: RunConfig | None = None) -> dict[str, str]:
    """The exact text that is sent to the text encoder for each view."""
    prompt = check_prompt(prompt)
    views = (config or preset("toybox", prompt)).views
    return {view: views.text(prompt, view) for view in VIEWS}


def runs(folder: Path | str | None = None) -> list[Run]:
    """All runs, oldest first."""
    return list_runs(runs_folder(folder))


def show(run: Run | str | Path, folder: Path | str | None = None) -> dict[str, Any]:
    """A run's record, with its true status and its newest metrics."""
    found = find_run(run, runs_folder(folder))
    metrics = found.metrics()
    return {**found.record, "status": found.status, "path": str(found.path), "metrics": metrics[-1] if metrics else None}


def doctor() -> dict[str, Any]:
    """What this machine has: device, backends and why, versions, models."""
    from importlib.metadata import PackageNotFoundError, version

    from dreamsa.fields.hashgrid_tcnn import BUILD_COMMANDS

    def versions(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    def backend(name: str) -> str:
        try:
            return f"yes ({resolve_backend(name, device_for('auto'))[1]})"  # pyright: ignore[reportArgumentType]
        except RuntimeError as error:
            return f"no: {error}"

    try:
        embedded = locate_model(ModelConfig())[1]
    except (ValueError, FileNotFoundError) as error:
        embedded = f"missing: {error}"
    gpu = torch.cuda.is_available()
    return {
        "dreamsa": __version__,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "hash grid": {name: backend(name) for name in ("torch", "numba", "triton", "tcnn")},
        "renderer": "{} ({})".format(*resolve_kernels(device_for("auto"))),
        "tiny-cuda-nn, to build": " && ".join(BUILD_COMMANDS),
        "ffmpeg": _ffmpeg(),
        "embedded model": embedded,
        "versions": {
            name: versions(name)
            for name in ("torch", "diffusers", "transformers", "accelerate", "numba", "triton", "safetensors", "gradio")
        },
    }


def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        return f"missing: {error}"


def stop_on_signals() -> list[int]:
    """A list that the first SIGINT or SIGTERM puts its number into, for loops to look at; the second one kills as usual."""
    seen: list[int] = []

    def handler(number: int, frame: Any) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return seen
