"""Outputs of a run whose scene is a soft ball."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio
import numpy as np
import pytest
import torch
import trimesh
from numpy.testing import assert_allclose
from PIL import Image
from studies.mesh_fidelity import compare, load_mesh
from tiny import tiny_config, tiny_score

from dreamsa import api, job, outputs
from dreamsa.config import CameraConfig, FieldConfig, RenderConfig
from dreamsa.media import contact_sheet
from dreamsa.meshing.hull import EmptyScene
from dreamsa.rendering import volume
from dreamsa.rendering.cameras import viewing_cameras
from dreamsa.runs import RunError
from dreamsa.scene import Scene

REPO = Path(__file__).resolve().parents[1]


def blob(folder, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
        patch.setattr(job, "write_results", lambda *arguments: None)
        return api.generate(config=tiny_config(steps=2, **changes), runs=folder).wait()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return blob(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def scene(run):
    return outputs.load_scene(run, "cpu")


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


FRAMES = (0, 8, 15, 60, 100)


@pytest.mark.parametrize("frames", FRAMES)
def test_a_contact_sheet_has_eight_views_45_degrees_apart(run, scene, frames, monkeypatch):
    def view(cameras, resolution, background=None):
        """Images whose red is the azimuth and whose green is the elevation, in degrees / 360."""
        zero = torch.zeros(len(cameras), resolution, resolution)
        rgb = torch.stack([zero, zero, zero], 1)
        rgb[:, 0] = cameras.azimuth_deg[:, None, None] / 360
        rgb[:, 1] = cameras.elevation_deg[:, None, None] / 360
        return volume.Image(rgb, zero, zero, torch.zeros(()), torch.zeros(()), 0)

    def sheet(images, columns):
        sheets.append(images)
        return contact_sheet(images, columns)

    sheets = []
    monkeypatch.setattr(scene, "view", view)
    monkeypatch.setattr(outputs, "write_turntable", lambda frames, stem: [])
    monkeypatch.setattr(outputs, "contact_sheet", sheet)
    outputs.write_outputs(run, scene, frames, 16)
    [images] = sheets
    azimuths, elevations = images[:, 0, 0, :2].T / 255 * 360
    expected = [*range(0, 360, 45), *range(0, 360, 90)]
    assert_allclose(azimuths, expected, atol=0.8)  # half a level
    assert_allclose(elevations, [15] * 8 + [70] * 4, atol=0.8)


def test_a_contact_sheet_does_not_depend_on_the_number_of_frames(run, scene, monkeypatch):
    def write(frames, stem):
        turntables.append(len(frames))
        return []

    turntables, sheets = [], set()
    monkeypatch.setattr(outputs, "write_turntable", write)
    for frames in FRAMES:
        outputs.write_outputs(run, scene, frames, 16)
        sheets.add((run.path / "contact_sheet.png").read_bytes())
    assert len(sheets) == 1
    assert turntables == list(FRAMES[1:])


def test_outputs_are_sheet_turntable_and_readme(run, scene):
    written = outputs.write_outputs(run, scene, 15, 16)
    names = ["contact_sheet.png", "turntable.webp", "turntable.mp4", "README.md"]
    assert [path.name for path in written] == names
    assert len(imageio.mimread(run.path / "turntable.mp4", memtest=False)) == 15
    assert f"dreamsa export {run.id}" in (run.path / "README.md").read_text()


def test_without_ffmpeg_the_turntable_is_a_webp_and_a_warning(tmp_path, monkeypatch):
    def fail(frames, path):
        raise outputs.NoFfmpeg("no ffmpeg")

    monkeypatch.setattr(outputs, "write_mp4", fail)
    with pytest.warns(UserWarning, match="no ffmpeg"):
        written = outputs.write_turntable(np.zeros((8, 16, 16, 3), np.uint8), tmp_path / "a")
    assert written == [tmp_path / "a.webp"]


def test_a_preview_is_named_after_its_step(run, scene):
    path = outputs.write_preview(run, scene, run.config.camera, 7)
    assert path == run.path / "previews" / "00000007.png"
    assert Image.open(path).size == (2 * (4 * 66 + 2), 2 * 68)


def test_a_mesh_agrees_with_its_scene(run, scene, tmp_path):
    path = api.export(run, resolution=48, texture=128, faces=4000, out=tmp_path / "a.glb")
    cameras = viewing_cameras(run.config.camera, [0.0, 90.0, 200.0])
    agreement, images = compare(load_mesh(path), scene, cameras, 64)
    assert min(agreement.iou) > 0.9
    assert agreement.colour_psnr > 25
    assert images.shape == (6, 64, 64, 3)


def test_exports_go_to_the_run_by_default(run, tmp_path):
    small = {"resolution": 24, "texture": 64}
    runs = run.path.parent
    assert api.export(run, **small) == run.path / "mesh.glb"
    for _ in range(2):  # the second replaces the three files of the first
        path = api.export(run, format="obj", **small)
        assert path == run.path / "mesh-obj" / "mesh.obj"
    path = api.export(run.id, format="ply", out=tmp_path, runs=runs, **small)
    assert path == tmp_path / f"{run.id}.ply"
    assert not list(run.path.rglob(".tmp-*"))


def test_the_command(run, tmp_path):
    def export(out):
        command = [sys.executable, "-m", "dreamsa.cli", "export", run.id, "--runs", run.path.parent]
        command += ["--format", "glb", "--texture", "128", "--resolution", "32", "--out", out]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=environment)

    done = export(tmp_path / "blob.glb")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "blob.glb")
    written = trimesh.load_scene(tmp_path / "blob.glb")
    assert written.metadata["prompt"] == "a rabbit"
    assert written.to_geometry().volume > 0
    bad = export("/dev/null/blob.glb")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("dreamsa: /dev/null/blob.glb cannot be written: Not a directory.")
    assert bad.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "fbx"}, "no format 'fbx'. There are: glb, obj, ply, stl"),
        ({"resolution": 100_000}, r"resolution must lie in \[16, 512\], got 100000"),
        ({"texture": 65536}, r"texture must lie in \[64, 4096\], got 65536"),
        ({"faces": 3}, r"faces must lie in \[100, 2000000\], got 3"),
        ({"colour": "none"}, "colour must be texture or vertex"),
        ({"scale": 0.0}, "scale must lie in"),
        ({"out": "no/folder/a.glb"}, "a.glb cannot be written: No such file or directory. Name"),
        ({"out": "a.stl"}, "a.stl does not end in .glb, which --format glb writes"),
        ({"out": "a.ply", "format": "obj"}, "does not end in .obj or .zip"),
    ],
)
def test_bad_arguments_write_nothing(run, arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(run.path)
    with pytest.raises(ValueError, match=sentence):
        api.export(run, **arguments)
    assert files(run.path) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["duck.png", "duck.mtl"])
def test_an_obj_refuses_to_overwrite_foreign_files_before_any_work(
    run, name, tmp_path, monkeypatch
):
    small = {"format": "obj", "resolution": 24, "texture": 64, "out": tmp_path / "duck.obj"}
    (tmp_path / name).write_text("another")
    before = files(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"{name} exists and does"):
        patch.delattr(outputs, "load_scene")
        api.export(run, **small)
    assert files(tmp_path) == before
    api.export(run, colour="vertex", **small)  # a single file
    assert (tmp_path / name).read_text() == "another"
    with pytest.raises(ValueError, match="does not belong to an earlier export of duck.obj; "):
        api.export(run, **small)


def test_an_unfinished_run_is_exported_from_its_newest_checkpoint_with_a_warning(tmp_path, run):
    with pytest.raises(RunError, match="is not a run in"):
        api.export("a-dragon", runs=tmp_path)
    run = blob(tmp_path)
    run.update(status="stopped")
    small = {"resolution": 24, "texture": 64}
    with pytest.warns(UserWarning, match=f"{run.id} is stopped, not finished; .* step 2 of 2, is"):
        assert api.export(run, **small) == run.path / "mesh.glb"
    shutil.rmtree(run.checkpoints)
    run.update(status="failed", error="ValueError: no good")
    with pytest.raises(RunError, match=r"is failed \(ValueError: no good\) and has no checkpoint"):
        api.export(run)


def test_an_empty_scene_is_an_error_with_the_reason(tmp_path):
    base = tiny_config().field
    run = blob(tmp_path, field=replace(base, blob_density=0.0, radius=0.3))
    reason = r"no line of sight through it is more than half opaque \(the maximum is \d+%\)"
    with pytest.raises(EmptyScene, match=f"cannot be exported: {reason}"):
        api.export(run, format="obj")
    assert not list(run.path.glob("mesh*"))


@pytest.mark.parametrize("channel", ["depth", "normal"])
def test_turntables_of_other_channels_have_the_exact_size(run, channel):
    written = api.render(run, frames=8, resolution=34, channel=channel)
    names = [f"turntable-{channel}.webp", f"turntable-{channel}.mp4"]
    assert [path.name for path in written] == names
    frames = np.stack(imageio.mimread(written[1], memtest=False)).astype(int)
    assert frames.shape == (8, 34, 34, 3)
    centre, corner = frames[0, 17, 17], frames[0, 1, 1]
    assert corner.max() < 40
    if channel == "normal":
        assert centre[2] > 180 and centre[:2].max() < 190
    else:
        assert centre.min() > 200  # nearest


def test_an_unknown_channel_is_refused(run):
    with pytest.raises(ValueError, match="no channel 'xyz'.* rgb, depth, normal"):
        api.render(run, channel="xyz")


def test_export_views_have_the_objects_own_colours():
    """Over black, an image is the object's own colour times its opacity."""
    scene = Scene(FieldConfig(), RenderConfig(samples=32), 0)
    scene.refresh(0, 0, full=True)
    camera = viewing_cameras(CameraConfig(), [8.0], 0.0)
    image = scene.view(camera, 16, 0.0)
    [view] = outputs.calibrated_views(scene, camera, 16)
    solid = view.opacity > 0.05
    assert solid.any()
    expected = image.rgb[0].movedim(0, -1).numpy()
    composited = (view.rgb * view.opacity[..., None])[solid]
    assert_allclose(composited, expected[solid], atol=1e-4)
    assert view.rgb.max() > image.rgb.max()


def test_export_views_surround_the_object_and_are_not_those_of_evaluations(scene, monkeypatch):
    monkeypatch.setattr(outputs, "calibrated_views", lambda scene, cameras: cameras)
    cameras = outputs.export_views(scene, CameraConfig())
    assert len(cameras) == 24
    assert 15 not in cameras.elevation_deg.round().tolist()  # pyright: ignore
