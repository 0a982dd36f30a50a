"""Files read back with trimesh, by hand where trimesh is lenient, and by the Khronos validator."""

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
from numpy.testing import assert_allclose
from PIL import Image
from solids import BLUE, BRICK, GREEN, HIGH, LOW, RED

from dreamsa.meshing.asset import make_asset
from dreamsa.meshing.files import check_materials, write_asset

PROMPT = 'a brick, "half" & <b>\u00e9\n'
ABOUT = {"prompt": PROMPT, "run": "a-brick-0000", "seed": 3, "version": "0.1.0"}
Y_UP_EXTENTS, Z_UP_EXTENTS = (0.6, 0.3, 0.8), (0.6, 0.8, 0.3)
"""Extents of the brick: 0.8 from back to front, 0.6 wide and 0.3 high."""
Y_UP_CENTRE, Z_UP_CENTRE = (-0.05, 0.15, 0.1), (-0.05, -0.1, 0.15)
FRONT, LEFT, TOP = (np.round(colour.numpy() * 255) for colour in (RED, GREEN, BLUE))


@pytest.fixture(scope="module")
def textured():
    return make_asset(BRICK, LOW, HIGH, resolution=40, texture=256)


@pytest.fixture(scope="module")
def coloured():
    return make_asset(BRICK, LOW, HIGH, resolution=40, colour="vertex")


@pytest.fixture
def coloured_glb(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.glb", "glb", ABOUT)
    return chunks(tmp_path / "a.glb")


def read(path):
    return trimesh.load_scene(path).to_geometry()


def chunks(path):
    """The JSON and the binary chunk of a GLB, read by the specification."""
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
    kind, count = kinds[about["componentType"]], about["count"] * width
    return np.frombuffer(binary, kind, count, start).reshape(-1, width)


def check_brick(mesh, extents, centre):
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    merged.merge_vertices(merge_tex=True, merge_norm=True)
    assert merged.is_watertight
    # half a cell off is 13 %; positive: faces outward
    assert merged.volume == pytest.approx(0.8 * 0.6 * 0.3, rel=0.15)
    assert_allclose(mesh.extents, extents, atol=0.04)
    assert_allclose(mesh.bounds.mean(0), centre, atol=0.015)


def test_glb_is_upright_and_faces_the_viewer(textured, tmp_path):
    write_asset(textured, tmp_path / "a.glb", "glb", ABOUT)
    check_brick(read(tmp_path / "a.glb"), Y_UP_EXTENTS, Y_UP_CENTRE)


def test_glb_texture_is_srgb_and_its_material_complete(textured, tmp_path):
    write_asset(textured, tmp_path / "a.glb", "glb", ABOUT)
    tree, binary = chunks(tmp_path / "a.glb")
    material = tree["materials"][0]
    core = material["pbrMetallicRoughness"]
    assert (core["metallicFactor"], core["roughnessFactor"]) == (0, 1)
    assert core["baseColorFactor"] == [1, 1, 1, 1]
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert "extensionsRequired" not in tree
    assert tree["scenes"][0]["extras"] == tree["asset"]["extras"] == ABOUT
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    png = io.BytesIO(binary[view["byteOffset"] :][: view["byteLength"]])
    texture = np.asarray(Image.open(png).convert("RGB"))
    assert texture.shape == (256, 256, 3)
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    names = ("POSITION", "NORMAL", "TEXCOORD_0")
    assert set(attributes) == {*names}
    position, normal, uv = (accessor(tree, binary, attributes[name]) for name in names)
    for axis, colour in ((2, FRONT), (0, LEFT), (1, TOP)):  # glTF: +z front, +x left, +y up
        here = normal[:, axis] > 0.99
        offset = np.abs(position - np.array(Y_UP_CENTRE)) / (np.array(Y_UP_EXTENTS) / 2)
        here &= np.delete(offset, axis, 1).max(1) < 0.7
        assert here.sum() > 3
        texel = texture[(uv[here, 1] * 256).astype(int), (uv[here, 0] * 256).astype(int)]
        assert_allclose(texel, np.tile(colour, (len(texel), 1)), atol=2)


def test_glb_vertex_colours_are_linear(coloured_glb):
    tree, binary = coloured_glb
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "COLOR_0"}
    assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0
    colour, normal = (accessor(tree, binary, attributes[name]) for name in ("COLOR_0", "NORMAL"))
    front = np.median(colour[normal[:, 2] > 0.99], 0)
    assert_allclose(front, (0.604, 0.0103, 0.0103), atol=0.002)  # of sRGB 204, 26, 26


def test_glb_without_unlit_is_matte(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.glb", "glb", ABOUT, unlit=False)
    tree, _ = chunks(tmp_path / "a.glb")
    assert "extensionsUsed" not in tree
    assert tree["materials"][0]["pbrMetallicRoughness"]["roughnessFactor"] == 1


@pytest.mark.parametrize("kind", ["textured", "coloured"])
def test_the_khronos_validator_has_no_issues(kind, tmp_path, request):
    program = (
        "const data = new Uint8Array(require('fs').readFileSync(process.argv[1]));"
        "require('gltf-validator').validateBytes(data)"
        ".then(report => console.log(JSON.stringify(report.issues)))"
    )
    command = ["node", "-e", "require('gltf-validator')"]
    if not shutil.which("node") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("npm install gltf-validator, and set NODE_PATH to its node_modules")
    write_asset(request.getfixturevalue(kind), tmp_path / "a.glb", "glb", ABOUT)
    issues = subprocess.check_output(["node", "-e", program, str(tmp_path / "a.glb")])
    assert json.loads(issues)["messages"] == []


def test_obj_finds_its_texture(textured, tmp_path):
    write_asset(textured, tmp_path / "my brick.obj", "obj", ABOUT)
    assert set(os.listdir(tmp_path)) == {"my brick.obj", "my-brick.mtl", "my-brick.png"}
    mesh = read(tmp_path / "my brick.obj")
    check_brick(mesh, Y_UP_EXTENTS, Y_UP_CENTRE)
    texture = np.asarray(mesh.visual.material.image.convert("RGB"))
    near = np.abs(mesh.vertices[:, :2] - Y_UP_CENTRE[:2]) < (0.2, 0.1)
    front = (mesh.vertex_normals[:, 2] > 0.99) & near.all(1)
    x, y = (mesh.visual.uv[front] * (256, -256) + (0, 256)).astype(int).T
    assert_allclose(texture[y, x], np.tile(FRONT, (front.sum(), 1)), atol=2)


def test_zipped_obj_holds_the_three_files(textured, tmp_path):
    write_asset(textured, tmp_path / "brick.zip", "obj", ABOUT)
    with zipfile.ZipFile(tmp_path / "brick.zip") as archive:
        assert set(archive.namelist()) == {"brick.obj", "brick.mtl", "brick.png"}
        assert archive.testzip() is None
        archive.extractall(tmp_path / "there")
    check_brick(read(tmp_path / "there" / "brick.obj"), Y_UP_EXTENTS, Y_UP_CENTRE)


def test_obj_can_have_colours_per_vertex(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.obj", "obj", ABOUT)
    assert os.listdir(tmp_path) == ["a.obj"]
    mesh = read(tmp_path / "a.obj")
    check_brick(mesh, Y_UP_EXTENTS, Y_UP_CENTRE)
    away = np.abs(mesh.visual.vertex_colors[:, :3] - TOP).max(1)
    assert (away <= 2).sum() > 20


def test_ply_is_z_up_with_srgb_colours(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.ply", "ply", ABOUT)
    mesh = read(tmp_path / "a.ply")
    check_brick(mesh, Z_UP_EXTENTS, Z_UP_CENTRE)
    near = np.abs(mesh.vertices[:, [0, 2]] - (-0.05, 0.15)) < (0.2, 0.1)
    front = mesh.visual.vertex_colors[(mesh.vertices[:, 1] < -0.48) & near.all(1), :3]
    assert_allclose(front, np.tile(FRONT, (len(front), 1)), atol=2)


def test_stl_is_z_up_and_closed_at_any_scale(coloured, tmp_path):
    write_asset(coloured, tmp_path / "a.stl", "stl", ABOUT)
    mesh = read(tmp_path / "a.stl")
    check_brick(mesh, Z_UP_EXTENTS, Z_UP_CENTRE)
    write_asset(coloured, tmp_path / "big.stl", "stl", ABOUT, scale=100)
    assert_allclose(read(tmp_path / "big.stl").extents, 100 * mesh.extents, rtol=1e-5)


@pytest.mark.parametrize("name", ["a.glb", "a.obj", "a.zip", "a.ply", "a.stl"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    textured, coloured, tmp_path, monkeypatch, name
):
    (tmp_path / name).write_bytes(b"old")
    format = {"zip": "obj"}.get(name[2:], name[2:])
    asset = coloured if format in ("ply", "stl") else textured

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_asset(asset, tmp_path / name, format, ABOUT)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"old"


def test_a_failed_obj_leaves_no_materials_in_the_way_of_the_next(textured, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if target.suffix == ".obj":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_asset(textured, tmp_path / "a.obj", "obj", ABOUT)
    assert not list(tmp_path.iterdir())


def test_a_textured_obj_refuses_to_overwrite_foreign_materials(textured, tmp_path):
    for name in ("brick.mtl", "brick.png"):
        (tmp_path / name).write_bytes(b"another")
        with pytest.raises(ValueError, match=f"{name} exists and does not belong to an earlier"):
            write_asset(textured, tmp_path / "brick.obj", "obj", ABOUT)
        assert os.listdir(tmp_path) == [name]
        assert (tmp_path / name).read_bytes() == b"another"
        write_asset(textured, tmp_path / "brick.zip", "obj", ABOUT)  # it has no files beside it
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_textured_obj_replaces_its_earlier_export(textured, tmp_path):
    write_asset(textured, tmp_path / "my brick.obj", "obj", ABOUT)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_asset(textured, tmp_path / "my brick.obj", "obj", ABOUT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


@pytest.mark.parametrize("change", ["the OBJ names another", "the MTL names another", "no OBJ"])
def test_materials_belong_to_the_obj_that_names_them(textured, tmp_path, change):
    obj, mtl = tmp_path / "a.obj", tmp_path / "a.mtl"
    write_asset(textured, obj, "obj", ABOUT)
    if change == "no OBJ":
        obj.unlink()
    else:
        file = obj if "OBJ" in change else mtl
        file.write_text(file.read_text().replace(" a.", " b."))
    with pytest.raises(ValueError, match="a.mtl exists and does not belong"):
        check_materials(obj)
