"""Fidelity of exported meshes: reload a file, rasterize it and compare it with the scene's renders.

Command: PYTHONPATH=tests python -m studies.mesh_fidelity RUN|FILE.npz... [--out FOLDER]. Prints a
Markdown table; with --out it keeps the files and an image per run, the scene above its mesh.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from studies.reconstruction import FIELD, RENDER, THRESHOLD, fit_scene, load_views

from dreamsa import api
from dreamsa.evaluation.views import fixed_cameras
from dreamsa.media import contact_sheet, write_png
from dreamsa.meshing.asset import make_asset
from dreamsa.meshing.files import AXES, write_asset
from dreamsa.meshing.kernels_numba import rasterize
from dreamsa.outputs import calibrated_views, load_scene
from dreamsa.rendering.cameras import Cameras
from dreamsa.runs import find_run, runs_folder
from dreamsa.scene import Scene
from dreamsa.statistics import psnr, silhouette_iou

RESOLUTION = 128
SUPERSAMPLING = 2
GREY = 0.7


class Agreement(NamedTuple):
    """A mesh against a scene, over all views."""

    iou: list[float]
    """Intersection over union of the silhouettes, per view."""
    colour_psnr: float
    """dB, of the object's own colours where both are opaque, without the background."""
    image_psnr: float
    """dB, of the complete images over the same grey, including semi-transparent rims."""


def load_mesh(path: Path) -> trimesh.Trimesh:
    """Read an exported mesh in world axes (z up, front +x)."""
    loaded = trimesh.load(path, process=False)
    mesh = loaded.to_geometry() if isinstance(loaded, trimesh.Scene) else loaded
    assert isinstance(mesh, trimesh.Trimesh)
    mesh.vertices = mesh.vertices @ AXES[path.suffix.removeprefix(".")]
    return mesh


def draw(
    mesh: trimesh.Trimesh, cameras: Cameras, resolution: int, background: float = GREY
) -> tuple[
    Float[np.ndarray, "b {resolution} {resolution} 3"],
    Bool[np.ndarray, "b {resolution} {resolution}"],
]:
    """Rasterize a mesh that lies in front of all cameras, unlit.

    Returns:
        sRGB in [0, 1], and where the mesh is.
    """
    side = resolution * SUPERSAMPLING
    blocks = (resolution, SUPERSAMPLING, resolution, SUPERSAMPLING)
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    images, masks = [], []
    for pose, focal in zip(
        cameras.pose.cpu().double().numpy(), cameras.focal.tolist(), strict=True
    ):
        local = (vertices - pose[:, 3]) @ pose[:, :3]
        depth = -local[:, 2]
        x = (focal * local[:, 0] / depth + 0.5) * side
        y = (0.5 - focal * local[:, 1] / depth) * side
        face_of = np.full((side, side), -1, np.int32)
        weights = np.zeros((side, side, 3), np.float32)
        z_buffer = np.full((side, side), -np.inf, np.float32)
        rasterize(np.stack([x, y, 1 / depth], 1), faces, face_of, weights, z_buffer)
        hit = face_of >= 0
        corners = faces[face_of[hit]]
        perspective = weights[hit] / depth[corners]
        image = np.full((side, side, 3), background)
        image[hit] = _colours(mesh, corners, perspective / perspective.sum(1, keepdims=True))
        images.append(image.reshape(*blocks, 3).mean((1, 3)))
        masks.append(hit.reshape(blocks).mean((1, 3)) > 0.5)
    return np.stack(images), np.stack(masks)


def _colours(
    mesh: trimesh.Trimesh, corners: np.ndarray, weights: np.ndarray
) -> Float[np.ndarray, "n 3"]:
    """sRGB in [0, 1] at points given by three vertices and their barycentric weights."""
    visual: Any = mesh.visual
    if visual.kind != "texture":
        return (visual.vertex_colors[corners][:, :, :3] / 255 * weights[:, :, None]).sum(1)
    material = visual.material
    source = getattr(material, "baseColorTexture", None) or material.image
    texture = np.asarray(source.convert("RGB")) / 255
    u, v = (visual.uv[corners] * weights[:, :, None]).sum(1).T
    at = np.stack([(1 - v) * len(texture) - 0.5, u * texture.shape[1] - 0.5])
    channels = (texture[:, :, c] for c in range(3))
    return np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in channels], 1)


def compare(
    mesh: trimesh.Trimesh, scene: Scene, cameras: Cameras, resolution: int = RESOLUTION
) -> tuple[Agreement, UInt8[np.ndarray, "images {resolution} {resolution} 3"]]:
    """Compare a mesh with its scene; also returns the images, the scene's before the mesh's."""
    view = scene.view(cameras, resolution, GREY)
    rgb, opacity = view.rgb.movedim(1, -1).cpu().double(), view.opacity.cpu()
    drawn, mask = map(torch.from_numpy, draw(mesh, cameras, resolution))
    both = (opacity > 0.5) & mask
    alpha = opacity[both][:, None]
    own = ((rgb[both] - (1 - alpha) * GREY) / alpha).clamp(0, 1)
    colour = float(psnr(own[None], drawn[both][None])) if both.any() else float("nan")
    agreement = Agreement(
        silhouette_iou(opacity, mask.float()).tolist(),
        colour,
        float(psnr(rgb.flatten()[None], drawn.flatten()[None])),
    )
    images = (torch.cat([rgb, drawn]).clamp(0, 1) * 255 + 0.5).byte().numpy()
    return agreement, images


def measure(
    name: str, scene: Scene, cameras: Cameras, path: Path, export: Callable[[], Any]
) -> dict[str, Any]:
    """Compare the file `path`, written by `export`, with the scene; write an image beside it."""
    wall, cpu = time.monotonic(), time.process_time()
    export()
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    mesh = load_mesh(path)
    agreement, images = compare(mesh, scene, cameras)
    write_png(contact_sheet(images, len(cameras)), path.with_suffix(".png"))
    return {
        "scene": name,
        "silhouette IoU, mean": f"{np.mean(agreement.iou):.3f}",
        "min": f"{min(agreement.iou):.3f}",
        "colour PSNR, dB": f"{agreement.colour_psnr:.1f}",
        "image PSNR, dB": f"{agreement.image_psnr:.1f}",
        "faces": len(mesh.faces),
        "MB": f"{path.stat().st_size / 1e6:.2f}",
        "CPU s": f"{cpu:.1f}",
        "wall s": f"{wall:.1f}",
    }


def measure_run(run: str, out: Path, runs: Path | None = None, **options: Any) -> dict[str, Any]:
    """Measure `dreamsa.export` of a run with these options, from the evaluation cameras."""
    found = find_run(run, runs_folder(runs))
    path, cameras = out / f"{found.id}.glb", fixed_cameras(found.config.camera)
    scene = load_scene(found, "cpu")
    return measure(found.id, scene, cameras, path, lambda: api.export(found, out=path, **options))


def measure_reconstruction(
    file: Path, out: Path, steps: int = 2000, samples: int = 2**15, **options: Any
) -> dict[str, Any]:
    """Measure the export of a NeRF fitted to images (see reconstruction.py), from 8 test views."""
    scene = Scene(FIELD, RENDER, 0)
    scene.occupancy.threshold = THRESHOLD / RENDER.step(FIELD.radius)
    for _ in fit_scene(load_views(file, "train"), scene.field, scene.occupancy, steps, samples, 0):
        pass
    with np.load(file, allow_pickle=False) as arrays:
        focal = float(arrays["focal"]) / arrays["test_images"].shape[2]
        test = _spread(arrays["test_poses"], 8, focal)
        train = _spread(arrays["train_poses"], 24, focal)
    path = out / f"{file.stem}.glb"

    def export() -> None:
        asset = make_asset(
            scene.query, *scene.box(), views=lambda: calibrated_views(scene, train), **options
        )
        write_asset(asset, path, "glb", {"prompt": file.stem})

    return measure(file.stem, scene, test, path, export)


def _spread(poses: np.ndarray, count: int, focal: float) -> Cameras:
    """`count` of the cameras, evenly spread over the list."""
    chosen = torch.from_numpy(poses[:: len(poses) // count][:count, :3].astype(np.float32))
    return Cameras(chosen, torch.full((count,), focal), torch.zeros(count), torch.zeros(count))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    text = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([text[0], "|---" * len(rows[0]) + "|", *text[1:]])


if __name__ == "__main__":
    from cyclopts import run as run_command

    def main(
        *subject: str,
        out: Path | None = None,
        runs: Path | None = None,
        resolution: int = 128,
        faces: int = 20_000,
    ) -> None:
        """Export runs, or NeRFs fitted to FILE.npz, as GLB and compare them with their scenes."""
        options = {"resolution": resolution, "faces": faces or None}
        with tempfile.TemporaryDirectory() as scratch:
            folder = out or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            rows = [
                measure_reconstruction(Path(one), folder, **options)
                if one.endswith(".npz")
                else measure_run(one, folder, runs, **options)
                for one in subject
            ]
        print(table(rows))

    run_command(main)
