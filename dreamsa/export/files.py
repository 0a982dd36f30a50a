"""Assets as files that open upright, in their colours, in other programs. Under its name a file is whole or not there.

GLB and OBJ are y up with the front along +z, as glTF says and modelling programs expect of OBJ; PLY and STL are z up with the front
along -y, as Blender and slicers read them: all four stand upright and look the same way in Blender. Units are metres.
"""

import io
import zipfile
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import trimesh
from jaxtyping import Float
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.ply import export_ply
from trimesh.exchange.stl import export_stl
from trimesh.visual.color import ColorVisuals
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from dreamsa.export.asset import Asset
from dreamsa.export.bake import srgb_to_linear
from dreamsa.export.video import atomic

Format = Literal["glb", "obj", "ply", "stl"]
FORMATS: tuple[str, ...] = get_args(Format)

Y_UP = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""World (z up, front +x) -> glTF and OBJ (y up, front +z, the object's left +x)."""
Z_UP = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""World -> PLY and STL (z up, front -y)."""
AXES = {"glb": Y_UP, "obj": Y_UP, "ply": Z_UP, "stl": Z_UP}


def write_asset(asset: Asset, path: Path, format: Format, about: dict[str, Any], scale: float = 1.0, unlit: bool = True) -> None:
    """Write one file, or for OBJ three: NAME.obj, NAME.mtl and NAME.png, or one zip of them where `path` ends in .zip.

    Args:
        about: JSON; kept in the GLB's extras.
        scale: Written units per world unit.
        unlit: GLB only: viewers show the colours as they are (KHR_materials_unlit); else as a matte surface in their own light.

    Raises:
        OSError: The path cannot be written; what was there before is untouched.
    """
    turned = _turned(asset, AXES[format], scale)
    if format == "glb":
        atomic(path, lambda part: part.write_bytes(_glb(turned, about, unlit)))
    elif format == "stl":
        atomic(path, lambda part: part.write_bytes(export_stl(_bare(turned))))
    elif format == "ply":
        atomic(path, lambda part: part.write_bytes(_ply(turned)))
    else:
        zipped = path.suffix.lower() == ".zip"
        files = _obj(turned, path.stem.removesuffix(".obj"), about)
        if zipped:
            atomic(path, lambda part: _zip(files, part))
        else:  # the OBJ last: where it is, all that it names is
            for name, data in files.items():
                atomic(path if name.endswith(".obj") else path.parent / name, lambda part, data=data: part.write_bytes(data))


def _turned(asset: Asset, axes: Float[np.ndarray, "3 3"], scale: float) -> Asset:
    surface = asset.surface._replace(vertices=asset.surface.vertices @ axes.T * scale)
    return asset._replace(surface=surface, normals=asset.normals @ axes.T)


def _bare(asset: Asset) -> trimesh.Trimesh:
    """The surface alone, closed."""
    return trimesh.Trimesh(asset.surface.vertices, asset.surface.faces, vertex_normals=asset.normals, process=False)


def _cut(asset: Asset, material: Any) -> trimesh.Trimesh:
    """The surface cut open along its charts, with a texture."""
    assert asset.charts is not None
    vertices, normals = asset.surface.vertices[asset.charts.vertex], asset.normals[asset.charts.vertex]
    visual = TextureVisuals(uv=asset.charts.uv, material=material)
    return trimesh.Trimesh(vertices, asset.charts.faces, vertex_normals=normals, visual=visual, process=False)


def _glb(asset: Asset, about: dict[str, Any], unlit: bool) -> bytes:
    matte = {"name": "dreamsa", "metallicFactor": 0.0, "roughnessFactor": 1.0, "baseColorFactor": [1.0, 1.0, 1.0, 1.0]}
    if asset.picture is not None:
        mesh = _cut(asset, PBRMaterial(baseColorTexture=Image.fromarray(asset.picture), **matte))
    else:
        mesh = _bare(asset)
        if asset.colours is not None:  # COLOR_0 is linear; in float, because 8 linear bits band in the dark
            mesh.vertex_attributes["color"] = srgb_to_linear(asset.colours / 255).astype(np.float32)

    def finish(tree: dict[str, Any]) -> None:
        tree["asset"] |= {"generator": f"dreamsa {about.get('version', '')}".strip(), "extras": about}
        tree["scenes"][0]["extras"] = about
        if "materials" not in tree:
            core = {key: matte[key] for key in ("metallicFactor", "roughnessFactor", "baseColorFactor")}
            tree["materials"] = [{"name": matte["name"], "pbrMetallicRoughness": core}]
        for primitive in (primitive for mesh in tree["meshes"] for primitive in mesh["primitives"]):
            primitive["material"] = 0
            if "_color" in primitive["attributes"]:
                primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop("_color")
            for accessor, target in [(primitive["indices"], 34963), *((index, 34962) for index in primitive["attributes"].values())]:
                tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = target  # ELEMENT_ARRAY_BUFFER, ARRAY_BUFFER
        if unlit:
            tree["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
            tree["extensionsUsed"] = ["KHR_materials_unlit"]

    scene = trimesh.Scene({"object": mesh})
    return export_glb(scene, include_normals=True, unitize_normals=True, tree_postprocessor=finish)


def _ply(asset: Asset) -> bytes:
    mesh = _bare(asset)
    if asset.colours is not None:
        mesh.visual = ColorVisuals(mesh, vertex_colors=asset.colours)
    return export_ply(mesh, vertex_normal=True)


def _obj(asset: Asset, name: str, about: dict[str, Any]) -> dict[str, bytes]:
    """File name -> content, the OBJ last. Written by hand: the names inside must be the names outside."""
    normals = asset.normals if asset.charts is None else asset.normals[asset.charts.vertex]
    vertices = asset.surface.vertices if asset.charts is None else asset.surface.vertices[asset.charts.vertex]
    faces = (asset.surface.faces if asset.charts is None else asset.charts.faces) + 1
    lines = ["# " + " ".join(f"{key}: {value};" for key, value in about.items()).replace("\n", " "), "o object"]
    coloured = vertices if asset.colours is None else np.concatenate([vertices, asset.colours / 255], 1)
    lines += [*_rows("v", coloured), *_rows("vn", normals)]
    files: dict[str, bytes] = {}
    material = "-".join(name.split())  # an MTL's names end at a space
    if asset.charts is not None and asset.picture is not None:
        png = io.BytesIO()
        Image.fromarray(asset.picture).save(png, "PNG")
        files[f"{material}.png"] = png.getvalue()
        files[f"{material}.mtl"] = f"newmtl dreamsa\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {material}.png\n".encode()
        lines = [lines[0], f"mtllib {material}.mtl", *lines[1:], "usemtl dreamsa"]
        lines += _rows("vt", asset.charts.uv)
        lines += ["f {0}/{0}/{0} {1}/{1}/{1} {2}/{2}/{2}".format(*face) for face in faces]
    else:
        lines += ["f {0}//{0} {1}//{1} {2}//{2}".format(*face) for face in faces]
    return {**files, f"{name}.obj": ("\n".join(lines) + "\n").encode()}


def _rows(key: str, values: np.ndarray) -> list[str]:
    return [f"{key} " + " ".join(f"{value:.6f}" for value in row) for row in values.tolist()]


def _zip(files: dict[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
