"""Written files, read again: by trimesh, by hand where trimesh is kind, and by the Khronos validator where there is one."""

import io
import json
import os
import shutil
import struct
import subprocess
import zipfile

import numpy as np
import pytest
import trimesh
from PIL import Image
from solids import BLUE, BRICK, GREEN, HIGH, LOW, RED

from dreamsa.export.asset import make_asset
from dreamsa.export.files import write_asset

ABOUT = {"prompt": 'a brick, "half" & <b>\u00e9\n', "run": "a-brick-0000", "seed": 3, "version": "0.1.0"}
Y_UP_EXTENTS, Z_UP_EXTENTS = (0.6, 0.3, 0.8), (0.6, 0.8, 0.3)
"""Of the brick, which is 0.8 from back to front, 0.6 wide and 0.3 high."""
Y_UP_CENTRE, Z_UP_CENTRE = (-0.05, 0.15, 0.1), (-0.05, -0.1, 0.15)
BYTES = {name: np.round(colour.numpy() * 255) for name, colour in (("front", RED), ("left", GREEN), ("top", BLUE))}


@pytest.fixture(scope="module")
def textured():
    return make_asset(BRICK, LOW, HIGH, resolution=40, texture=256)


@pytest.fixture(scope="module")
def coloured():
    return make_asset(BRICK, LOW, HIGH, resolution=40, colour="vertex")


def read(path):
    return trimesh.load_scene(path).to_geometry()


def chunks(path):
    """A GLB's JSON and binary chunk, read by the specification."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    tree = json.loads(data[20 : 20 + size])
    return tree, data[28 + size :]


def accessor(tree, binary, index):
    about = tree["accessors"][index]
    view = tree["bufferViews"][about["bufferView"]]
    kinds = {5126: np.float32, 5125: np.uint32, 5121: np.uint8, 5123: np.uint16}
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[about["type"]]
    start = view.get("byteOffset", 0) + about.get("byteOffset", 0)
    return np.frombuffer(binary, kinds[about["componentType"]], about["count"] * width, start).reshape(-1, width)


def is_whole(mesh, extents, centre):
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    merged.merge_vertices(merge_tex=True, merge_norm=True)
    assert merged.is_watertight
    assert merged.volume == pytest.approx(0.8 * 0.6 * 0.3, rel=0.15)  # positive: the faces look outward; half a cell off is 13 %
    np.testing.assert_allclose(mesh.extents, extents, atol=0.04)
    np.testing.assert_allclose(mesh.bounds.mean(0), centre, atol=0.015)


def test_glb_is_upright_and_faces_the_viewer(textured, tmp_path):
    write_asset(textured, tmp_path / "a.glb", "glb", ABOUT)
    is_whole(read(tmp_path / "a.glb"), Y_UP_EXTENTS, Y_UP_CENTRE)


def test_glb_texture_is_srgb_and_its_material_is_stated(textured, tmp_path):
    write_asset(textured, tmp_path / "a.glb", "glb", ABOUT)
    tree, binary = chunks(tmp_path / "a.glb")
    material = tree["materials"][0]
    core = material["pbrMetallicRoughness"]
    assert (core["metallicFactor"], core["roughnessFactor"], core["baseColorFactor"]) == (0, 1, [1, 1, 1, 1])
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert "extensionsRequired" not in tree
    assert tree["scenes"][0]["extras"] == tree["asset"]["extras"] == ABOUT
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    picture = np.asarray(Image.open(io.BytesIO(binary[view["byteOffset"] :][: view["byteLength"]])).convert("RGB"))
    assert picture.shape == (256, 256, 3)
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    position, normal, uv = (accessor(tree, binary, attributes[name]) for name in ("POSITION", "NORMAL", "TEXCOORD_0"))
    for axis, side in ((2, "front"), (0, "left"), (1, "top")):  # glTF: +z front, +x left, +y up
        here = normal[:, axis] > 0.99
        offset = np.abs(position - np.array(Y_UP_CENTRE)) / (np.array(Y_UP_EXTENTS) / 2)
        here &= np.delete(offset, axis, 1).max(1) < 0.7
        assert here.sum() > 3
        texel = picture[(uv[here, 1] * 256).astype(int), (uv[here, 0] * 256).astype(int)]
        np.testing.assert_allclose(texel, np.tile(BYTES[side], (len(texel), 1)), atol=2)


def test_glb_vertex_colours_are_linear(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.glb", "glb", ABOUT)
    tree, binary = chunks(tmp_path / "a.glb")
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "COLOR_0"}
    assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0
    colour, normal = accessor(tree, binary, attributes["COLOR_0"]), accessor(tree, binary, attributes["NORMAL"])
    front = np.median(colour[normal[:, 2] > 0.99], 0)
    np.testing.assert_allclose(front, (0.604, 0.0103, 0.0103), atol=0.002)  # of sRGB 204, 26, 26


def test_glb_without_unlit_is_matte(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.glb", "glb", ABOUT, unlit=False)
    tree, _ = chunks(tmp_path / "a.glb")
    assert "extensionsUsed" not in tree
    assert tree["materials"][0]["pbrMetallicRoughness"]["roughnessFactor"] == 1


@pytest.mark.parametrize("kind", ["textured", "coloured"])
def test_the_khronos_validator_finds_no_fault(kind, tmp_path, request):
    program = (
        "require('gltf-validator').validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[1])))"
        ".then(report => console.log(JSON.stringify(report.issues)))"
    )
    if not shutil.which("node") or subprocess.run(["node", "-e", "require('gltf-validator')"], capture_output=True).returncode:
        pytest.skip("node with gltf-validator is not here; npm install gltf-validator, and name its node_modules in NODE_PATH")
    write_asset(request.getfixturevalue(kind), tmp_path / "a.glb", "glb", ABOUT)
    done = subprocess.run(["node", "-e", program, str(tmp_path / "a.glb")], capture_output=True, text=True, check=True)
    issues = json.loads(done.stdout)
    assert issues["messages"] == []


def test_obj_finds_its_texture(textured, tmp_path):
    write_asset(textured, tmp_path / "my brick.obj", "obj", ABOUT)
    assert {path.name for path in tmp_path.iterdir()} == {"my brick.obj", "my-brick.mtl", "my-brick.png"}
    mesh = read(tmp_path / "my brick.obj")
    is_whole(mesh, Y_UP_EXTENTS, Y_UP_CENTRE)
    picture = np.asarray(mesh.visual.material.image.convert("RGB"))
    front = (mesh.vertex_normals[:, 2] > 0.99) & (np.abs(mesh.vertices[:, :2] - Y_UP_CENTRE[:2]) < (0.2, 0.1)).all(1)
    at = (mesh.visual.uv[front] * (256, -256) + (0, 256)).astype(int)
    np.testing.assert_allclose(picture[at[:, 1], at[:, 0]], np.tile(BYTES["front"], (front.sum(), 1)), atol=2)


def test_zipped_obj_holds_the_three_files(textured, tmp_path):
    write_asset(textured, tmp_path / "brick.zip", "obj", ABOUT)
    with zipfile.ZipFile(tmp_path / "brick.zip") as archive:
        assert set(archive.namelist()) == {"brick.obj", "brick.mtl", "brick.png"}
        assert archive.testzip() is None
        archive.extractall(tmp_path / "there")
    is_whole(read(tmp_path / "there" / "brick.obj"), Y_UP_EXTENTS, Y_UP_CENTRE)


def test_obj_can_carry_colours_per_vertex(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.obj", "obj", ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.obj"]
    mesh = read(tmp_path / "a.obj")
    is_whole(mesh, Y_UP_EXTENTS, Y_UP_CENTRE)
    away = np.abs(mesh.visual.vertex_colors[:, :3] - BYTES["top"]).max(1)
    assert (away <= 2).sum() > 20


def test_ply_is_z_up_with_srgb_colours(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.ply", "ply", ABOUT)
    mesh = read(tmp_path / "a.ply")
    is_whole(mesh, Z_UP_EXTENTS, Z_UP_CENTRE)
    front = (mesh.vertices[:, 1] < -0.48) & (np.abs(mesh.vertices[:, [0, 2]] - (-0.05, 0.15)) < (0.2, 0.1)).all(1)
    np.testing.assert_allclose(mesh.visual.vertex_colors[front, :3], np.tile(BYTES["front"], (front.sum(), 1)), atol=2)


def test_stl_is_z_up_and_closed_at_any_scale(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.stl", "stl", ABOUT)
    is_whole(read(tmp_path / "a.stl"), Z_UP_EXTENTS, Z_UP_CENTRE)
    write_asset(coloured, tmp_path / "big.stl", "stl", ABOUT, scale=100)
    np.testing.assert_allclose(read(tmp_path / "big.stl").extents, 100 * read(tmp_path / "a.stl").extents, rtol=1e-5)


@pytest.mark.parametrize("name", ["a.glb", "a.obj", "a.zip", "a.ply", "a.stl"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(textured, coloured, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"old")
    format = {"zip": "obj"}.get(name[2:], name[2:])

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_asset(coloured if format in ("ply", "stl") else textured, tmp_path / name, format, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"old"
