"""Files made from a run's scene: preview, contact sheet, turntable, README and mesh."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamsa import checkpoint, media
from dreamsa.choices import FORMATS, Channel, ColourMode, Format
from dreamsa.config import CameraConfig
from dreamsa.device import resolve_device
from dreamsa.files import TEMPORARY, write_atomic
from dreamsa.media import Frames, NoFfmpeg, contact_sheet, write_mp4, write_png, write_webp
from dreamsa.meshing.asset import Beneath, Colour, make_asset
from dreamsa.meshing.colour_correction import CalibratedView
from dreamsa.meshing.hull import EmptyScene
from dreamsa.preservation import changes_sheet, eight_views, preservation, report
from dreamsa.rendering.cameras import Cameras, camera_rays, viewing_cameras
from dreamsa.rendering.shading import depth_normals
from dreamsa.runs import Run
from dreamsa.scene import Scene
from dreamsa.version import __version__

Stage = Callable[[str], None]
"""Receives a short description of each stage of slow work as it begins."""

TURNTABLE_SIZE = 256
"""Side of a finished run's turntable, pixels."""
RESULT_RESOLUTION, RESULT_FACES, RESULT_TEXTURE = 128, 10_000, 512
"""Of the mesh that a finished run gets by itself: small enough to be quick; an export is finer."""
AT_ONCE = 4
"""Images rendered between two reports of progress."""
SHEET_VIEWS = 8
"""Views around the object on a contact sheet."""
EXPORT_RINGS = ((0, 8, 10.0), (20, 8, 32.5), (45, 6, 0.0), (80, 2, 0.0))
"""Rings of cameras that an export fits colours to: elevation, number, first azimuth (degrees).
None is a camera of `dreamsa.evaluate`."""


def silent(text: str) -> None:
    """A stage that nobody is shown."""


def load_scene(run: Run, device: str = "auto") -> Scene:
    """A run's scene from its latest checkpoint."""
    config = run.config
    scene = Scene(config.field, config.render, config.seed, resolve_device(device), config.layers)
    scene.restore(checkpoint.load(run.latest_checkpoint).tensors["scene"])
    return scene


def orbit_images(
    scene: Scene,
    camera_config: CameraConfig,
    count: int,
    resolution: int,
    elevation_deg: float = 15.0,
    channel: Channel = "rgb",
    rendered: Callable[[int], None] = lambda count: None,
) -> Frames:
    """Render evenly spaced views around the object, the first from the front.

    Args:
        rendered: Called with the number of images rendered so far.
    """
    azimuth_deg = [360 * i / count for i in range(count)]
    cameras = viewing_cameras(camera_config, azimuth_deg, elevation_deg)
    cameras = cameras.to(scene.occupancy.density.device)
    if channel == "rgb":
        parts = []
        for i in range(0, count, AT_ONCE):
            parts.append(media.to_uint8(scene.view(cameras[i : i + AT_ONCE], resolution).rgb))
            rendered(min(i + AT_ONCE, count))
        return np.concatenate(parts)
    image = scene.view(cameras, resolution)
    opacity = image.opacity.cpu().numpy()
    if channel == "depth":
        return media.depth_images(image.depth.cpu().numpy(), opacity)
    directions = camera_rays(cameras, resolution, resolution)[1]
    points = torch.einsum("bhwi,bij->bhwj", directions, cameras.pose[:, :, :3])
    normals = depth_normals(points * image.depth[..., None], image.opacity > 0.1)
    return media.normal_images(normals.cpu().numpy(), opacity)


def write_preview(run: Run, scene: Scene, camera_config: CameraConfig, step: int) -> Path:
    """Write four small views to `previews/STEP.png`, in a folder that exists."""
    path = run.path / "previews" / f"{step:08d}.png"
    write_png(contact_sheet(orbit_images(scene, camera_config, 4, 64), 4, magnify=2), path)
    return path


def write_results(run: Run, scene: Scene, stage: Stage) -> None:
    """Write everything that a finished run gets: pictures and, unless its configuration leaves it
    out, mesh.glb. A scene without a surface gets a warning instead of a mesh."""
    config = run.config
    size = TURNTABLE_SIZE if config.turntable else 128
    write_outputs(run, scene, config.turntable, size, stage=stage)
    if config.mesh and config.turntable:
        try:
            path = run.path / "mesh.glb"
            write_mesh(
                run,
                scene,
                path,
                "glb",
                RESULT_RESOLUTION,
                RESULT_TEXTURE,
                RESULT_FACES,
                stage=lambda part: stage(f"mesh: {part}"),
            )
        except (ValueError, RuntimeError, OSError) as error:
            warnings.warn(f"Run {run.id} has no mesh: {error}", stacklevel=2)
        else:
            write_readme(run)


def write_outputs(
    run: Run,
    scene: Scene,
    frames: int = 60,
    resolution: int = 128,
    folder: Path | None = None,
    stage: Stage = silent,
) -> list[Path]:
    """Write a run's contact sheet (8 views around, 4 from above), turntable and README.

    Args:
        folder: Where to write sheet and turntable, in place of the run's own folder, which then
            keeps its README.

    Returns:
        The files written; no turntable if `frames` is 0.
    """
    camera, home = run.config.camera, folder or run.path
    shares = frames % SHEET_VIEWS == 0 and frames > 0
    total = frames + 4 + (0 if shares else SHEET_VIEWS)

    def orbit(count: int, before: int, elevation_deg: float = 15.0) -> Frames:
        def rendered(done: int) -> None:
            stage(f"pictures {before + done}/{total}")

        return orbit_images(scene, camera, count, resolution, elevation_deg, rendered=rendered)

    above = orbit(4, 0, 70.0)
    turntable = orbit(frames, 4) if frames else above[:0]
    around = turntable[:: frames // SHEET_VIEWS] if shares else orbit(SHEET_VIEWS, 4 + frames)
    written = [home / "contact_sheet.png"]
    write_png(contact_sheet(np.concatenate([around, above]), 4), written[0])
    if frames:
        written += write_turntable(turntable, home / "turntable")
    if folder is None:
        written.append(write_readme(run))
    return written


def write_changes(run: Run, before: Scene, after: Scene) -> dict[str, Any]:
    """Write an edit's changes.png: the parent above the edit, what differs outlined.

    Returns:
        The entries of `Preservation`.
    """
    views = eight_views(before, run.config.camera), eight_views(after, run.config.camera)
    write_png(changes_sheet(*views), run.path / "changes.png")
    return report(preservation(before, after, views))


def write_turntable(frames: Frames, stem: Path) -> list[Path]:
    """Write STEM.webp and, if ffmpeg can, STEM.mp4; warns if it cannot."""
    written = [stem.with_name(f"{stem.name}.webp"), stem.with_name(f"{stem.name}.mp4")]
    write_webp(frames, written[0])
    try:
        write_mp4(frames, written[1])
    except NoFfmpeg as error:
        warnings.warn(str(error), stacklevel=3)
        del written[1]
    return written


def write_readme(run: Run) -> Path:
    """Write what a run's folder holds; returns the file."""
    path = run.path / "README.md"
    write_atomic(path, _readme(run).encode())
    return path


def _readme(run: Run) -> str:
    record, turntable = run.record, (run.path / "turntable.webp").exists()
    mesh = "Mesh: `mesh.glb`. " if (run.path / "mesh.glb").exists() else ""
    lineage = "\n".join(
        f"{i}. {step['prompt']} (`{step['id']}`)" for i, step in enumerate(record["lineage"], 1)
    )
    return (
        f"# {record['prompt']}\n\n![twelve views](contact_sheet.png)\n\n"
        + (f"Made by editing:\n\n{lineage}\n\n" if lineage else "")
        + ("Turntable: `turntable.mp4`, `turntable.webp`. " if turntable else "")
        + f"{mesh}{record['steps']} steps, seed {run.config.seed}, dreamsa {record['version']}.\n\n"
        + f'Edit it: `dreamsa edit {run.id} "a new prompt"`\n\n'
        + f"Export it as a mesh: `dreamsa export {run.id} --format glb`\n"
    )


def export_mesh(
    run: Run,
    *,
    format: Format,
    out: Path | str | None,
    resolution: int,
    texture: int,
    faces: int | None,
    colour: ColourMode,
    scale: float,
    unlit: bool,
    stage: Stage,
) -> Path:
    """Write a run's object as a mesh; `dreamsa.export` describes arguments and errors."""
    _check_export(format, resolution, texture, faces, colour, scale)
    run.require_scene()
    path = _mesh_path(run, format, out)
    if format == "obj" and colour == "texture":
        from dreamsa.meshing.files import check_materials  # trimesh loads slowly

        check_materials(path)
    stage("loading the scene")
    scene = load_scene(run)
    write_mesh(run, scene, path, format, resolution, texture, faces, colour, scale, unlit, stage)
    return path


def write_mesh(
    run: Run,
    scene: Scene,
    path: Path,
    format: Format,
    resolution: int,
    texture: int,
    faces: int | None,
    colour: ColourMode = "texture",
    scale: float = 1.0,
    unlit: bool = True,
    stage: Stage = silent,
) -> None:
    """Convert a scene into a mesh and write it to a path that fits the format.

    Raises:
        EmptyScene: The scene has no visible object; nothing is written.
    """
    from dreamsa.meshing.files import write_asset  # trimesh loads slowly

    config, record = run.config, run.record
    forced: dict[Format, Colour] = {"ply": "vertex", "stl": "none"}
    try:
        asset = make_asset(
            scene.query,
            *scene.box(),
            resolution=resolution,
            faces=faces,
            colour=forced.get(format, colour),
            texture=texture,
            views=lambda: export_views(scene, config.camera),
            device=scene.occupancy.density.device,
            stage=stage,
            beneath=kept_beneath(scene),
        )
    except EmptyScene as error:
        raise EmptyScene(
            f"Run {run.id} cannot be exported: {error}. See its contact_sheet.png; "
            "train it for longer or again."
        ) from error
    stage(f"write {path.name}")
    about = {"prompt": record["prompt"], "run": run.id, "seed": config.seed, "version": __version__}
    path.parent.mkdir(exist_ok=True)  # mesh-obj
    write_asset(asset, path, format, about, scale, unlit)


def kept_beneath(scene: Scene) -> Beneath | None:
    """What an edit's mesh takes from its parent's: nothing if it has no region, and nothing that it
    would not have anyway if its density is frozen."""
    old, below = scene.beneath(), scene.below
    if old is None or below is None or below.keeps_shape or not below.free.has_region:
        return None
    return Beneath(old.query, *old.box(), kept=lambda points: below.weight(points) == 0)


def _check_export(
    format: str, resolution: int, texture: int, faces: int | None, colour: str, scale: float
) -> None:
    if format not in FORMATS:
        raise ValueError(f"There is no format {format!r}. There are: {', '.join(FORMATS)}.")
    if colour not in ("texture", "vertex"):
        raise ValueError(f"colour must be texture or vertex, got {colour!r}.")
    for name, value, low, high in (
        ("resolution", resolution, 16, 512),
        ("texture", texture, 64, 4096),
        ("faces", faces, 100, 2_000_000),
    ):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low}, {high}], got {value}.")
    if not 0 < scale < 1e6:
        raise ValueError(f"scale must lie in (0, 1000000) units per world unit, got {scale}.")


def _mesh_path(run: Run, format: Format, out: Path | str | None) -> Path:
    """Path of an export, in a folder that has proved to be writable."""
    if out is None and format == "obj":
        path = run.path / "mesh-obj" / "mesh.obj"
    else:
        path = Path(out if out is not None else run.path / f"mesh.{format}").expanduser()
    if path.is_dir():
        path = path / f"{run.id}.{format}"
    endings = (".obj", ".zip") if format == "obj" else (f".{format}",)
    if path.suffix.lower() not in endings:
        raise ValueError(
            f"{path} does not end in {' or '.join(endings)}, which --format {format} writes."
        )
    folder = run.path if out is None else path.parent
    try:
        tempfile.NamedTemporaryFile(prefix=TEMPORARY, dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror or error}. Name another file with --out."
        ) from error
    return path


def export_views(scene: Scene, camera_config: CameraConfig) -> list[CalibratedView]:
    """Render the 24 views that an export fits its colours to, from all around and above."""
    rings = [
        viewing_cameras(camera_config, [first + 360 * i / count for i in range(count)], elevation)
        for elevation, count, first in EXPORT_RINGS
    ]
    fields = zip(*(vars(ring).values() for ring in rings), strict=True)
    return calibrated_views(scene, Cameras(*map(torch.cat, fields)))


def calibrated_views(scene: Scene, cameras: Cameras, size: int = 40) -> list[CalibratedView]:
    """Render the object's own colours, without background, from known cameras."""
    image = scene.view(cameras, size, 0.0)
    opacity = image.opacity.cpu().double().numpy()
    rgb = image.rgb.movedim(1, -1).cpu().double().numpy() / np.maximum(opacity, 1e-3)[..., None]
    poses, focals = cameras.pose.cpu().double().numpy(), cameras.focal.tolist()
    return list(map(CalibratedView, poses, focals, np.clip(rgb, 0, 1), opacity))
