"""A run as HTML for notebooks, without anything from elsewhere."""

import base64
import html
from pathlib import Path

PICTURES = {"turntable.webp": "webp", "contact_sheet.png": "png"}
HEIGHT = 360
"""Of the object's viewer, pixels."""


def run_html(path: Path, prompt: str, status: str) -> str:
    """The object of a run's folder: its mesh, to rotate, or else its turntable or contact sheet."""
    title = f"<b>{html.escape(prompt)}</b> <small>{html.escape(path.name)}, {status}</small>"
    return f"<div>{title}<br>{_mesh(path / 'mesh.glb') or _picture(path)}</div>"


def _mesh(path: Path) -> str:
    if not path.is_file():
        return ""
    import trimesh
    from trimesh.viewer.notebook import scene_to_html

    page = html.escape(scene_to_html(trimesh.load_scene(path)), quote=True)
    return (
        f'<iframe srcdoc="{page}" width="100%" height="{HEIGHT}" style="border:0" '
        'title="the object"></iframe>'
    )


def _picture(folder: Path) -> str:
    previews = max((folder / "previews").glob("[0-9]*.png"), default=None)
    for path in (*(folder / name for name in PICTURES), previews):
        if path is not None and path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            kind = PICTURES.get(path.name, "png")
            return f'<img src="data:image/{kind};base64,{data}" alt="views of the object">'
    return "no picture yet"
