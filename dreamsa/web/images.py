"""Images of the page, made from a run's files and small enough to be embedded in it."""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence

from dreamsa.runs import Run

FRAMES = 60
"""Frames of a side-by-side turntable."""


def data_uri(data: bytes) -> str:
    """A webp as a data URI, so that the page needs no access to the server's files."""
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def side_by_side(before: Run, after: Run) -> bytes | None:
    """Two turntables in one animation, which keeps them in step; None unless both exist."""
    paths = [run.path / "turntable.webp" for run in (before, after)]
    if not all(path.is_file() for path in paths):
        return None
    return _side_by_side(*((path, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=8)
def _side_by_side(left: tuple[Path, int], right: tuple[Path, int]) -> bytes:
    frames = []
    for a, b in zip(animation(left[0], FRAMES), animation(right[0], FRAMES), strict=True):
        height = a.shape[0]
        if b.shape[0] != height:
            size = round(b.shape[1] * height / b.shape[0]), height
            b = np.asarray(Image.fromarray(b).resize(size, Image.Resampling.LANCZOS))
        gap = np.full((height, 4, 3), 128, np.uint8)
        frames.append(Image.fromarray(np.concatenate([a, gap, b], 1)))
    return _webp(
        frames[0],
        save_all=True,
        append_images=frames[1:],
        duration=50,
        loop=0,
        quality=85,
        method=2,
    )


def _webp(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", **options)
    return file.getvalue()


def animation(path: Path, count: int) -> UInt8[np.ndarray, "count h w 3"]:
    """`count` frames of a webp animation, evenly spaced in time.

    By time and not by index, because a file stores a series of equal frames as one long frame.
    """
    with Image.open(path, formats=("WEBP",)) as image:
        frames, ends, end = [], [], 0.0
        for frame in ImageSequence.Iterator(image):
            frame.load()
            end += max(float(frame.info.get("duration", 0)), 1.0)
            frames.append(np.asarray(frame.convert("RGB")))
            ends.append(end)
    times = (np.arange(count) + 0.5) * end / count
    return np.stack([frames[i] for i in np.searchsorted(ends, times)])


def before_and_after(
    before: Run, after: Run
) -> tuple[UInt8[np.ndarray, "512 512 3"], UInt8[np.ndarray, "512 512 3"]] | None:
    """Two runs from one camera, 45 degrees beside the front; None unless both have a sheet."""
    paths = [run.path / "contact_sheet.png" for run in (before, after)]
    if not all(path.is_file() for path in paths):
        return None
    return _second_view(paths[0]), _second_view(paths[1])


def _second_view(path: Path) -> UInt8[np.ndarray, "512 512 3"]:
    sheet, gap = read_png(path), 2
    side = (sheet.shape[1] - gap) // 4 - gap
    left = 2 * gap + side
    view = Image.fromarray(sheet[gap : gap + side, left : left + side])
    return np.asarray(view.resize((512, 512), Image.Resampling.BICUBIC))


def read_png(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A png file as RGB."""
    with Image.open(path, formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))


def thumbnail(run: Run) -> str | None:
    """The first view of a run's contact sheet, or else newest preview, as a data URI."""
    path = run.path / "contact_sheet.png"
    if not path.is_file():
        path = max((run.path / "previews").glob("[0-9]*.png"), default=path)
    try:
        return _thumbnail(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=500)
def _thumbnail(path: Path, changed: int) -> str:
    sheet = read_png(path)
    side = sheet.shape[1] // 4
    view = Image.fromarray(sheet[2:side, 2:side])
    return data_uri(_webp(view.resize((96, 96), Image.Resampling.LANCZOS), quality=80))
