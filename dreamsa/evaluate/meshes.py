"""Does the mesh look like the scene it was made from? Export, reload the file, draw it, compare with the scene's own renders.

Command: python -m dreamsa.evaluate.meshes RUN|FILE.npz... [--out FOLDER]. Prints a Markdown table; with --out it keeps the files and one
picture per run, the scene above its mesh.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float
from scipy import ndimage

from dreamsa import api
from dreamsa.evaluate.geometry import AZIMUTHS, ELEVATION_DEG, silhouette_iou
from dreamsa.evaluate.reconstruct import FIELD, RENDER, THRESHOLD, fit_scene, load_photographs
from dreamsa.export import kernels
from dreamsa.export.asset import make_asset
from dreamsa.export.files import AXES, write_asset
from dreamsa.export.video import contact_sheet, write_png
from dreamsa.render.cameras import Cameras, orbit
from dreamsa.scene import Scene

RESOLUTION = 128
SUPERSAMPLING = 2
GREY = 0.7


class Agreement(NamedTuple):
    """A mesh against a scene, over all views."""

    iou: list[float]
    """Of the outlines per view; more than half opaque counts."""
    colour_psnr: float
    """dB, where both are solid, of the object's own colour: without the background that shows through a soft field."""
    picture_psnr: float
    """dB, of the whole pictures over the same grey, the soft field's half-transparent rims included."""


def load_mesh(path: Path) -> trimesh.Trimesh:
    """A written mesh in world axes (z up, front +x)."""
    loaded = trimesh.load(path, process=False)
    mesh = loaded.to_geometry() if isinstance(loaded, trimesh.Scene) else loaded
    assert isinstance(mesh, trimesh.Trimesh)
    mesh.vertices = mesh.vertices @ AXES[path.suffix.removeprefix(".")]
    return mesh


def draw(
    mesh: trimesh.Trimesh, cameras: Cameras, resolution: int, background: float = GREY
) -> tuple[Float[np.ndarray, "b {resolution} {resolution} 3"], Bool[np.ndarray, "b {resolution} {resolution}"]]:
    """The mesh in its own colours, unlit: (sRGB in [0, 1], where it is solid). Vertices lie in front of the cameras."""
    side = resolution * SUPERSAMPLING
    pictures, solids = [], []
    for pose, focal in zip(cameras.pose.cpu().double().numpy(), cameras.focal.tolist(), strict=True):
        seen = (np.asarray(mesh.vertices) - pose[:, 3]) @ pose[:, :3]
        depth = -seen[:, 2]
        x, y = (focal * seen[:, 0] / depth + 0.5) * side, (0.5 - focal * seen[:, 1] / depth) * side
        face_of, weights = np.full((side, side), -1, np.int32), np.zeros((side, side, 3), np.float32)
        faces = np.asarray(mesh.faces)
        kernels.rasterize(np.stack([x, y, 1 / depth], 1), faces, face_of, weights, np.full((side, side), -np.inf, np.float32))
        hit = face_of >= 0
        corners = faces[face_of[hit]]
        share = weights[hit] / depth[corners]
        picture = np.full((side, side, 3), background)
        picture[hit] = _colours(mesh, corners, share / share.sum(1, keepdims=True))
        blocks = (resolution, SUPERSAMPLING, resolution, SUPERSAMPLING)
        pictures.append(picture.reshape(*blocks, 3).mean((1, 3)))
        solids.append(hit.reshape(blocks).mean((1, 3)) > 0.5)
    return np.stack(pictures), np.stack(solids)


def _colours(mesh: trimesh.Trimesh, corners: np.ndarray, share: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] at points given by three vertices and their shares."""
    visual: Any = mesh.visual
    if visual.kind == "texture":
        material = visual.material
        texture = np.asarray((getattr(material, "baseColorTexture", None) or material.image).convert("RGB")) / 255
        uv = (visual.uv[corners] * share[:, :, None]).sum(1)
        at = np.stack([(1 - uv[:, 1]) * len(texture) - 0.5, uv[:, 0] * texture.shape[1] - 0.5])
        return np.stack([ndimage.map_coordinates(texture[:, :, c], at, order=1, mode="nearest") for c in range(3)], 1)
    return (visual.vertex_colors[corners][:, :, :3] / 255 * share[:, :, None]).sum(1)


def compare(mesh: trimesh.Trimesh, scene: Scene, cameras: Cameras, resolution: int = RESOLUTION) -> tuple[Agreement, np.ndarray]:
    """How well they agree, and both in one array uint8 [2 b, h, w, 3]: the scene's views, then the mesh's."""
    view = scene.look(cameras, resolution, GREY)
    rgb, opacity = view.rgb.movedim(1, -1).cpu().numpy(), view.opacity.cpu().numpy()
    drawn, solid = draw(mesh, cameras, resolution)
    iou = [silhouette_iou(a, b.astype(np.float32)) for a, b in zip(opacity, solid, strict=True)]
    both = (opacity > 0.5) & solid
    own = (rgb[both] - (1 - opacity[both])[:, None] * GREY) / opacity[both][:, None]
    colour = psnr(np.clip(own, 0, 1), drawn[both]) if both.any() else float("nan")
    pictures = (np.clip(np.concatenate([rgb, drawn]), 0, 1) * 255 + 0.5).astype(np.uint8)
    return Agreement(iou, colour, psnr(rgb, drawn)), pictures


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB, of values in [0, 1]."""
    return float(-10 * np.log10(np.square(a - b).mean() + 1e-12))


def measure(name: str, scene: Scene, cameras: Cameras, path: Path, export: Callable[[], Any]) -> dict[str, Any]:
    """Let `export` write `path`, and compare what was written with the scene. Leaves a picture beside it."""
    wall, cpu = time.monotonic(), time.process_time()
    export()
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    mesh = load_mesh(path)
    agreement, pictures = compare(mesh, scene, cameras)
    write_png(contact_sheet(pictures, len(cameras)), path.with_suffix(".png"))
    return {
        "scene": name,
        "silhouette IoU, mean": f"{np.mean(agreement.iou):.3f}",
        "least": f"{min(agreement.iou):.3f}",
        "colour PSNR, dB": f"{agreement.colour_psnr:.1f}",
        "picture PSNR, dB": f"{agreement.picture_psnr:.1f}",
        "faces": len(mesh.faces),
        "MB": f"{path.stat().st_size / 1e6:.2f}",
        "CPU s": f"{cpu:.1f}",
        "wall s": f"{wall:.1f}",
    }


def measure_run(run: str, out: Path, runs: Path | None = None, **options: Any) -> dict[str, Any]:
    """A run from 8 azimuths, exported as `api.export` does with these options."""
    found = api.find_run(run, api.runs_folder(runs))
    path = out / f"{found.id}.glb"
    cameras = orbit(list(AZIMUTHS), ELEVATION_DEG, **api.viewing_camera(found.config.camera))
    return measure(found.id, api.load_scene(found, "cpu"), cameras, path, lambda: api.export(found, out=path, **options))


def measure_photographs(file: Path, out: Path, steps: int = 2000, samples: int = 2**15, **options: Any) -> dict[str, Any]:
    """A NeRF fitted to photographs (see reconstruct.py), from 8 of the test views."""
    scene = Scene(FIELD, RENDER, 0)
    scene.occupancy.threshold = THRESHOLD / RENDER.step(FIELD.radius)
    for _ in fit_scene(load_photographs(file, "train"), scene.field, scene.occupancy, steps, samples, 0):
        pass
    with np.load(file, allow_pickle=False) as arrays:
        focal = float(arrays["focal"]) / arrays["test_images"].shape[2]
        cameras, others = (_some(arrays[f"{split}_poses"], n, focal) for split, n in (("test", 8), ("train", 24)))
    path = out / f"{file.stem}.glb"

    def export() -> None:
        asset = make_asset(scene.query, *scene.box(), photographs=lambda: api.photographs(scene, others), **options)
        write_asset(asset, path, "glb", {"prompt": file.stem})

    return measure(file.stem, scene, cameras, path, export)


def _some(poses: np.ndarray, count: int, focal: float) -> Cameras:
    """`count` of the cameras, evenly spread over the list."""
    chosen = torch.from_numpy(poses[:: len(poses) // count][:count, :3].astype(np.float32))
    return Cameras(chosen, torch.full((count,), focal), torch.zeros(count), torch.zeros(count))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows)])


if __name__ == "__main__":
    from cyclopts import run as run_command

    def main(*subject: str, out: Path | None = None, runs: Path | None = None, resolution: int = 128, faces: int = 20_000) -> None:
        """Export runs, or NeRFs fitted to FILE.npz, as GLB; reload and draw them; compare with the scenes' own renders."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = out or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            options = {"resolution": resolution, "faces": faces or None}
            print(
                table(
                    [
                        measure_photographs(Path(one), folder, **options)
                        if one.endswith(".npz")
                        else measure_run(one, folder, runs, **options)
                        for one in subject
                    ]
                )
            )

    run_command(main)
