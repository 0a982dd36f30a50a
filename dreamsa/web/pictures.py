"""Pictures for the page, made from the files of a run and small enough to be sent as part of it."""

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dreamsa.runs import Run

FRAMES = 60
"""Of a turntable that is made from two."""


def data_uri(picture: bytes, kind: str = "webp") -> str:
    """A picture as a URI that holds it, so that no file of the server need be reachable for the page to show it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def turntable(run: Run) -> bytes | None:
    """A finished run's turntable, an animated webp; None if it has none."""
    path = run.path / "turntable.webp"
    return path.read_bytes() if path.is_file() else None


def side_by_side(before: Run, after: Run) -> bytes | None:
    """Both turntables in one animation, so that they cannot get out of step; None unless both runs have one."""
    paths = [run.path / "turntable.webp" for run in (before, after)]
    if not all(path.is_file() for path in paths):
        return None
    return _side_by_side(*((path, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=8)
def _side_by_side(left: tuple[Path, int], right: tuple[Path, int]) -> bytes:
    pictures = []
    for a, b in zip(animation(left[0], FRAMES), animation(right[0], FRAMES), strict=True):
        b = _resized(b, a.shape[0])
        gap = np.full((a.shape[0], 4, 3), 128, np.uint8)
        pictures.append(Image.fromarray(np.concatenate([a, gap, b], 1)))
    made = io.BytesIO()
    pictures[0].save(made, "WEBP", save_all=True, append_images=pictures[1:], duration=50, loop=0, quality=85, method=2)
    return made.getvalue()


def animation(path: Path, count: int) -> UInt8[np.ndarray, "count h w 3"]:
    """`count` frames of an animation, evenly spaced in time. Frames that look alike are stored as one that lasts longer."""
    with Image.open(path, formats=("WEBP",)) as picture:
        frames, ends, end = [], [], 0.0
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            picture.load()
            end += max(float(picture.info.get("duration", 0)), 1.0)
            frames.append(np.asarray(picture.convert("RGB")))
            ends.append(end)
    moments = (np.arange(count) + 0.5) * end / count
    return np.stack([frames[i] for i in np.searchsorted(ends, moments)])


def before_and_after(before: Run, after: Run) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]] | None:
    """Both runs seen by one camera, from 45 degrees beside the front, at one size; None unless both have a contact sheet."""
    paths = [run.path / "contact_sheet.png" for run in (before, after)]
    if not all(path.is_file() for path in paths):
        return None
    first, second = (one_view(read(path), 1) for path in paths)
    return first, second


def one_view(sheet: UInt8[np.ndarray, "sheet_h sheet_w 3"], index: int, columns: int = 4, gap: int = 2) -> UInt8[np.ndarray, "512 512 3"]:
    """One picture of a contact sheet's first row, enlarged."""
    side = (sheet.shape[1] - gap) // columns - gap
    left = gap + index * (side + gap)
    cut = Image.fromarray(sheet[gap : gap + side, left : left + side])
    return np.asarray(cut.resize((512, 512), Image.Resampling.BICUBIC))


def read(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A png."""
    with Image.open(path, formats=("PNG",)) as picture:
        return np.asarray(picture.convert("RGB"))


def thumbnail(run: Run) -> str | None:
    """A run's first view as a small URI: of its contact sheet, else of its newest preview; None before it has any."""
    path = run.path / "contact_sheet.png"
    if not path.is_file():
        path = max((run.path / "previews").glob("[0-9]*.png"), default=path)
    try:
        return _thumbnail(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=500)
def _thumbnail(path: Path, changed: int) -> str:
    with Image.open(path, formats=("PNG",)) as picture:
        side = picture.width // 4
        made = io.BytesIO()
        picture.convert("RGB").crop((2, 2, side, side)).resize((96, 96), Image.Resampling.LANCZOS).save(made, "WEBP", quality=80)
    return data_uri(made.getvalue())


def _resized(picture: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    if picture.shape[0] == height:
        return picture
    width = round(picture.shape[1] * height / picture.shape[0])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
