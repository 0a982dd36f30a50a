"""Exports of a run, by the function and by the command. The run is the blob that a scene starts as: a soft ball."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio
import numpy as np
import pytest
import trimesh
from tiny import tiny_config, tiny_score

from dreamsa import api
from dreamsa.evaluate.meshes import compare, load_mesh
from dreamsa.export.mesh import EmptyScene
from dreamsa.render.cameras import orbit
from dreamsa.runs import RunError

REPO = Path(__file__).resolve().parents[2]


def blob(folder, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
        patch.setattr(api, "write_outputs", lambda run, scene, frames=8, resolution=16: [])
        return api.generate(config=tiny_config(steps=2, **changes), runs=folder).wait()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return blob(tmp_path_factory.mktemp("runs"))


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_mesh_looks_like_its_scene(run, tmp_path):
    path = api.export(run, resolution=48, texture=128, faces=4000, out=tmp_path / "a.glb")
    cameras = orbit([0.0, 90.0, 200.0], 15.0, **api.viewing_camera(run.config.camera))
    agreement, pictures = compare(load_mesh(path), api.load_scene(run), cameras, 64)
    assert min(agreement.iou) > 0.9
    assert agreement.colour_psnr > 25
    assert pictures.shape == (6, 64, 64, 3)


def test_files_land_in_the_run_unless_told_otherwise(run, tmp_path):
    small = {"resolution": 24, "texture": 64}
    assert api.export(run, **small) == run.path / "mesh.glb"
    assert api.export(run, format="obj", **small) == run.path / "mesh-obj" / "mesh.obj"
    assert api.export(run.id, format="ply", out=tmp_path, runs=run.path.parent, **small) == tmp_path / f"{run.id}.ply"
    assert not list(run.path.rglob(".tmp-*"))


def test_the_command(run, tmp_path):
    command = [sys.executable, "-m", "dreamsa.cli", "export", run.id, "--runs", run.path.parent, "--format", "glb", "--texture", "128"]
    command += ["--resolution", "32", "--out", tmp_path / "blob.glb"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=REPO, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "blob.glb")
    scene = trimesh.load_scene(tmp_path / "blob.glb")
    assert scene.metadata["prompt"] == "a rabbit"
    assert scene.to_geometry().volume > 0
    bad = subprocess.run(list(map(str, [*command[:-1], "/dev/null/blob.glb"])), capture_output=True, text=True, cwd=REPO)
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
        ({"out": "no/such/folder/a.glb"}, "no/such/folder/a.glb cannot be written: No such file or directory. Name another"),
        ({"out": "a.stl"}, "a.stl does not end in .glb, which --format glb writes"),
        ({"out": "a.ply", "format": "obj"}, "does not end in .obj or .zip"),
    ],
)
def test_bad_arguments_are_one_sentence_and_write_nothing(run, arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(run.path)
    with pytest.raises(ValueError, match=sentence):
        api.export(run, **arguments)
    assert files(run.path) == before
    assert not list(tmp_path.iterdir())


def test_unfinished_runs_are_refused(tmp_path, run):
    with pytest.raises(RunError, match="is not a run in"):
        api.export("a-dragon", runs=tmp_path)
    run = blob(tmp_path)
    run.update(status="stopped")
    with pytest.raises(RunError, match=f"{run.id} is stopped, not finished. Finish it first: dreamsa resume"):
        api.export(run)
    assert not (run.path / "mesh.glb").exists()


def test_an_empty_scene_is_an_error_with_the_reason(tmp_path):
    base = tiny_config().field
    run = blob(tmp_path, field=replace(base, blob_density=0.0, radius=0.3))
    with pytest.raises(EmptyScene, match=r"cannot be exported: no line of sight through it is more than half opaque \(the most is \d+%\)"):
        api.export(run, format="obj")
    assert not list(run.path.glob("mesh*"))


@pytest.mark.parametrize("channel", ["depth", "normal"])
def test_turntables_of_other_channels_have_the_exact_size(run, channel):
    written = api.render(run, frames=8, resolution=34, channel=channel)
    assert [path.name for path in written] == [f"turntable-{channel}.webp", f"turntable-{channel}.mp4"]
    frames = imageio.mimread(written[1], memtest=False)
    assert (len(frames), frames[0].shape) == (8, (34, 34, 3))
    middle, corner = np.asarray(frames[0])[17, 17].astype(int), np.asarray(frames[0])[1, 1].astype(int)
    assert corner.max() < 40
    assert (middle[2] > 180 and middle[:2].max() < 190) if channel == "normal" else middle.min() > 200  # the blob's middle is nearest


def test_an_unknown_channel_is_refused(run):
    with pytest.raises(ValueError, match="no channel 'xyz'. There are: rgb, depth, normal"):
        api.render(run, channel="xyz")
