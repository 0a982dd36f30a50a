"""Write assets as files that other programs open upright and in their colours.

GLB and OBJ are y up with the front along +z; PLY and STL are z up with the front along -y, as
Blender and slicers read them. Units are metres.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.ply import export_ply
from trimesh.exchange.stl import export_stl
from trimesh.visual.color import ColorVisuals
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from dreamsa.choices import Format
from dreamsa.files import write_atomic
from dreamsa.meshing.asset import Asset
from dreamsa.meshing.bake import srgb_to_linear

Y_UP = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""World (z up, front +x) -> glTF and OBJ (y up, front +z, the object's left +x)."""
Z_UP = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""World -> PLY and STL (z up, front -y)."""
AXES = {"glb": Y_UP, "obj": Y_UP, "ply": Z_UP, "stl": Z_UP}


def write_asset(
    asset: Asset,
    path: Path,
    format: Format,
    about: dict[str, Any],
    scale: float = 1.0,
    unlit: bool = True,
) -> None:
    """Write an asset atomically.

    A textured OBJ is three files, NAME.obj, NAME.mtl and NAME.png, or a zip of them if `path` ends
    in .zip.

    Args:
        about: JSON, written to the GLB's extras and the OBJ's first line.
        scale: Written units per world unit.
        unlit: GLB only: viewers show the colours without lighting (KHR_materials_unlit).

    Raises:
        ValueError: NAME.mtl or NAME.png is not the OBJ's own; see `check_materials`.
        OSError: `path` cannot be written; an existing file there is unchanged.
    """
    axes = AXES[format]
    surface = asset.surface._replace(vertices=asset.surface.vertices @ axes.T * scale)
    asset = asset._replace(surface=surface, normals=asset.normals @ axes.T)
    if format == "glb":
        write_atomic(path, _encode_glb(asset, about, unlit))
    elif format == "stl":
        write_atomic(path, export_stl(_mesh(asset._replace(charts=None))))
    elif format == "ply":
        mesh = _mesh(asset._replace(charts=None))
        if asset.colours is not None:
            mesh.visual = ColorVisuals(mesh, vertex_colors=asset.colours)
        write_atomic(path, export_ply(mesh, vertex_normal=True))
    else:
        files = _encode_obj(asset, path.stem.removesuffix(".obj"), about)
        if path.suffix.lower() == ".zip":
            write_atomic(path, lambda part: _write_zip(files, part))
        else:
            _write_obj(files, path)


def _write_obj(files: dict[str, bytes], path: Path) -> None:
    if len(files) > 1:
        check_materials(path)
    targets = {path if name.endswith(".obj") else path.with_name(name): name for name in files}
    created = [target for target in targets if not target.exists()]
    try:
        for target, name in targets.items():  # the OBJ last, so that the files that it names exist
            write_atomic(target, files[name])
    except BaseException:
        for target in created:  # without the OBJ, the next export would refuse to overwrite them
            target.unlink(missing_ok=True)
        raise


def check_materials(path: Path) -> None:
    """Check that a textured OBJ at `path` would overwrite no material or texture but its own.

    Raises:
        ValueError: NAME.mtl or NAME.png exists, but NAME.obj does not name NAME.mtl, or that is no
            material of dreamsa which names NAME.png. A zip has none beside it.
    """
    name = _material_name(path.stem.removesuffix(".obj"))
    mtl, png = (path.with_name(name + ending) for ending in (".mtl", ".png"))
    found = next((file for file in (mtl, png) if file.exists()), None)
    if found is None or path.suffix.lower() == ".zip":
        return
    names_mtl = f"mtllib {mtl.name}" in _head(path)
    if not (names_mtl and {"newmtl dreamsa", f"map_Kd {png.name}"} <= set(_head(mtl))):
        raise ValueError(
            f"{found} exists and does not belong to an earlier export of {path.name}; "
            "an OBJ writes its material there. Name another file with --out."
        )


def _head(path: Path) -> list[str]:
    """The first lines of a text file; empty if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for _, line in zip(range(8), file, strict=False)]


def _vertices(asset: Asset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, normals and faces, cut open along the charts if there are any."""
    vertices, faces = asset.surface
    if asset.charts is None:
        return vertices, asset.normals, faces
    return vertices[asset.charts.vertex], asset.normals[asset.charts.vertex], asset.charts.faces


def _mesh(asset: Asset, material: Any = None) -> trimesh.Trimesh:
    vertices, normals, faces = _vertices(asset)
    visual = None
    if asset.charts is not None:
        visual = TextureVisuals(uv=asset.charts.uv, material=material)
    return trimesh.Trimesh(vertices, faces, vertex_normals=normals, visual=visual, process=False)


def _encode_glb(asset: Asset, about: dict[str, Any], unlit: bool) -> bytes:
    matte = {"metallicFactor": 0.0, "roughnessFactor": 1.0, "baseColorFactor": [1.0, 1.0, 1.0, 1.0]}
    image = None if asset.texture is None else Image.fromarray(asset.texture)
    mesh = _mesh(asset, PBRMaterial(name="dreamsa", baseColorTexture=image, **matte))
    if asset.colours is not None:  # COLOR_0 is linear; 8 linear bits would band in dark colours
        mesh.vertex_attributes["color"] = srgb_to_linear(asset.colours / 255).astype(np.float32)

    def complete(tree: dict[str, Any]) -> None:
        """Add to the JSON of the GLB what trimesh leaves out."""
        generator = f"dreamsa {about.get('version', '')}".strip()
        tree["asset"] |= {"generator": generator, "extras": about}
        tree["scenes"][0]["extras"] = about
        tree.setdefault("materials", [{"name": "dreamsa", "pbrMetallicRoughness": matte}])
        for primitive in (primitive for mesh in tree["meshes"] for primitive in mesh["primitives"]):
            primitive["material"] = 0
            attributes = primitive["attributes"]
            if "_color" in attributes:
                attributes["COLOR_0"] = attributes.pop("_color")
            for accessor in (primitive["indices"], *attributes.values()):
                buffer = tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]
                # ELEMENT_ARRAY_BUFFER, ARRAY_BUFFER
                buffer["target"] = 34963 if accessor == primitive["indices"] else 34962
        if unlit:
            tree["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
            tree["extensionsUsed"] = ["KHR_materials_unlit"]

    return export_glb(
        trimesh.Scene({"object": mesh}),
        include_normals=True,
        unitize_normals=True,
        tree_postprocessor=complete,
    )


def _encode_obj(asset: Asset, name: str, about: dict[str, Any]) -> dict[str, bytes]:
    """Contents by file name, the OBJ last. trimesh would choose other names inside."""
    vertices, normals, faces = _vertices(asset)
    if asset.colours is not None:
        vertices = np.concatenate([vertices, asset.colours / 255], 1)
    facts = " ".join(f"{key}: {value};" for key, value in about.items())
    header = ["# " + facts.replace("\n", " ")]
    body = ["o object", *_rows("v", vertices), *_rows("vn", normals)]
    files: dict[str, bytes] = {}
    corner = "{0}//{0}"
    if asset.charts is not None and asset.texture is not None:
        material = _material_name(name)
        png = io.BytesIO()
        Image.fromarray(asset.texture).save(png, "PNG")
        files[f"{material}.png"] = png.getvalue()
        mtl = f"newmtl dreamsa\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {material}.png\n"
        files[f"{material}.mtl"] = mtl.encode()
        header.append(f"mtllib {material}.mtl")
        body += ["usemtl dreamsa", *_rows("vt", asset.charts.uv)]
        corner = "{0}/{0}/{0}"
    body += ["f " + " ".join(map(corner.format, face)) for face in (faces + 1).tolist()]
    return {**files, f"{name}.obj": ("\n".join(header + body) + "\n").encode()}


def _material_name(name: str) -> str:
    """Name of an OBJ's NAME.mtl and NAME.png: inside an MTL, names end at a space."""
    return "-".join(name.split())


def _rows(key: str, values: np.ndarray) -> Iterator[str]:
    return (f"{key} " + " ".join(f"{value:.6f}" for value in row) for row in values.tolist())


def _write_zip(files: dict[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
